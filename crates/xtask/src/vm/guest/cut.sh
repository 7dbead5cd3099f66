# Looks at what the last power cut has left on the second disk, tells it, and goes on until the next one. Its lines on the ledger:
#   found KIND NAME, broken KIND NAME, check TEXT; then "looked"
#   intent present|absent KIND NAME, ack present|absent KIND NAME, refused KIND NAME
options=defaults
# What nobody asks to be safe is not, for long.
[ $file_system = ext4 ] && options=commit=1000
modprobe $file_system
mkdir -p /data
mount -t $file_system -o $options /dev/vdb /data || exit
exec 3>/dev/ttyS1
tell() { echo "$*" >&3; }
engine="dhow --data-root /data/dhow --exec-root /run/dhow"
dhow registry serve --data /prepared/registry >/dev/null 2>&1 &

images() { $engine images --format '{{.Repository}}:{{.Tag}}' | grep -v '<none>'; }
containers() { $engine ps -a --format '{{.Names}}'; }
volumes() { $engine volume ls -q; }
for name in $(containers); do tell found container $name; done
for name in $(volumes); do tell found volume $name; done
for name in $(images); do
  tell found image $name
  $engine run --rm --network none $name /check || tell broken image $name
done
$engine system check --layers | while read line; do tell check $line; done
tell looked

# KIND NAME and what makes or removes it.
present() { kind=$1 name=$2; shift 2; tell intent present $kind $name; if "$@" >/dev/null; then tell ack present $kind $name; else tell refused $kind $name; fi; }
absent() { kind=$1 name=$2; shift 2; tell intent absent $kind $name; if "$@" >/dev/null; then tell ack absent $kind $name; else tell refused $kind $name; fi; }
some() { set -- $($1) ""; shift $((RANDOM % $#)); echo "$1"; }
context=/run/context
mkdir -p $context
made=0
while :; do
  made=$((made + 1))
  new=$times-$made
  pulled=127.0.0.1:5000/image:$((RANDOM % 4 + 1))
  image=$(some images)
  case $((RANDOM % 8)) in
    0|1) present image $pulled $engine pull -q $pulled ;;
    2)
      [ -n "$image" ] || continue
      $engine run --name work-$new --network none $image /make made-$new 40 || continue
      present image made:commit-$new $engine commit work-$new made:commit-$new
      $engine rm work-$new >/dev/null
      ;;
    3)
      [ -n "$image" ] || continue
      echo $new >$context/new
      printf 'FROM %s\nCOPY new /new-%s\nRUN /make built-%s 30\nRUN md5sum /new-%s >/sums-copied-%s\n' $image $new $new $new $new >$context/Dockerfile
      present image made:build-$new $engine build -q --network none -t made:build-$new $context
      ;;
    4)
      [ -n "$image" ] || continue
      present container c-$new $engine run -d --network none --name c-$new $image sleep 1000
      ;;
    5)
      present volume v-$new $engine volume create v-$new
      [ -n "$image" ] && present image made:tag-$new $engine tag $image made:tag-$new
      ;;
    6) present image loaded:latest $engine load -q -i /prepared/archive.tar ;;
    7)
      name=$(some containers); [ -n "$name" ] && absent container $name $engine rm -f $name
      name=$(some volumes); [ -n "$name" ] && absent volume $name $engine volume rm $name
      ;;
  esac
  # Not more than can be looked at in a while; the images of containers stay.
  if [ $(images | wc -l) -gt 7 ]; then
    name=$(some images)
    [ -n "$name" ] && absent image $name $engine rmi -f $name
  fi
done
