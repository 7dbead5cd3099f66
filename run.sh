set -u
B=/work/target/x86_64-unknown-linux-gnu/debug/dhow
cd /work/tmp/sb
umount -l d 2>/dev/null; rm -rf d r img; mkdir d r
truncate -s 96M img; mkfs.ext4 -q -m 0 img; mount -o loop img d
D="$B --data-root /work/tmp/sb/d --exec-root /work/tmp/sb/r"
timeout 20 $D import /work/tmp/busybox.tar busybox >/dev/null
timeout 20 $D run -d --name box --network none busybox sleep 1000 >/dev/null
for i in $(seq 1 ${1:-60}); do
  rm -f d/filler; 
  dd if=/dev/zero of=d/filler bs=64k 2>/dev/null; dd if=/dev/zero of=d/filler2 bs=4k 2>/dev/null; sync -f d
  truncate -s -$((RANDOM % 8 * 4096)) d/filler; rm -f d/filler2; dd if=/dev/zero of=d/filler2 bs=4k 2>/dev/null; sync -f d;  truncate -s -$((RANDOM % 8 * 4096)) d/filler
  m=$((64 + i % 64))
  timeout 20 strace -f -q -e trace=mmap,openat,ftruncate,fallocate -o tr $D update --memory ${m}m --memory-swap ${m}m box > out 2>&1; c=$?
  rm -f d/filler d/filler2
  if [ $c -gt 100 ]; then echo "round $i code $c"; grep -n SIG tr | head; break; fi
done
cat out | head -3
timeout 20 $D rm -f box; timeout 10 umount d
