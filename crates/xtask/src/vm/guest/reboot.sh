# One boot of several: the task's state is on the second disk. Tells what runs.
mkdir -p /data
mount -t ext4 /dev/vdb /data
exec 3>/dev/ttyS1
engine="dhow --data-root /data/dhow --exec-root /run/dhow"
$engine daemon --host unix:///run/dhow.sock &
until $engine -H unix:///run/dhow.sock version >/dev/null 2>&1; do sleep 0.1; done
on() { $engine -H unix:///run/dhow.sock "$@" || echo "failed: $*" >&3; }
run() { on run -d --network none "$@" >/dev/null; }
if [ ! -e /data/prepared ]; then
  mkdir -p /tmp/image/bin
  cp /bin/busybox /tmp/image/bin
  ln -s busybox /tmp/image/bin/sh
  tar -C /tmp/image -c . | on import - busybox >/dev/null
  set -- busybox /bin/busybox sleep 100000
  run --name no "$@"
  run --name always --restart always "$@"
  run --name unless-stopped --restart unless-stopped "$@"
  run --name on-failure --restart on-failure "$@"
  run --name always-stopped --restart always "$@"
  run --name unless-stopped-stopped --restart unless-stopped "$@"
  run --name on-failure-ended --restart on-failure busybox /bin/busybox true
  run --name gone --rm "$@"
  on create --network none --name created --restart always "$@" >/dev/null
  run --name owner --restart always "$@"
  on run -d --name user --restart always --network container:owner "$@" >/dev/null
  on stop -t 0 always-stopped unless-stopped-stopped >/dev/null
  touch /data/prepared
else
  # What is to run comes up while the daemon answers.
  for attempt in $(seq 300); do
    [ "$(on ps -q | wc -l)" -ge 6 ] && break
    sleep 0.2
  done
fi
on ps -a --format '{{.Names}} {{.State}}' | while read line; do echo "container $line" >&3; done
on system check | while read line; do echo "check $line" >&3; done
echo "told" >&3
# Some boots end in good order, some do not.
[ "$times" = hard ] || sync
