#!/bin/busybox sh
# The first program of the machine's own root. Where a program is missing busybox has one of its name. The kernel's command line
# names the task, which is what the machine is for.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/var/tmp REQUIRE_KERNEL=1 RUST_BACKTRACE=0 TEST_PATIENCE=120
/bin/busybox mount -t proc proc /proc
for applet in $(/bin/busybox --list); do [ -e /bin/$applet ] || [ -e /sbin/$applet ] || /bin/busybox ln -s /bin/busybox /bin/$applet; done
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t securityfs security /sys/kernel/security
ip link set lo up
for module in overlay loop veth bridge nf_tables quota_v2; do modprobe $module; done
for word in $(cat /proc/cmdline); do case $word in task=*|times=*|file_system=*) export "$word";; esac; done
echo "booted Linux $(uname -r)"
. /tasks/$task
poweroff -f
