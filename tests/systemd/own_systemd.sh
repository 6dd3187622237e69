#!/bin/bash
# Boots a systemd of its own: PID 1 of new pid, mount, uts, ipc, net and cgroup namespaces, on an overlay of this
# machine's root that is forgotten with it. The host sees nothing of it but the folders it is given.
#
#   unshare --pid --fork --kill-child=KILL --mount --uts --ipc --net --propagation=private \
#       own_systemd.sh SCRATCH CGROUP [FROM TO rw|ro]...
#
# SCRATCH is an empty folder, CGROUP an empty control group of version 2. Each FROM is mounted at TO.
set -eu

if [ -z "${OWN_CGROUP_NAMESPACE:-}" ]; then
    # The cgroup namespace begins where this process is, and is looked at from inside the new pid namespace.
    echo 0 > "$2/cgroup.procs"
    OWN_CGROUP_NAMESPACE=1 exec unshare --cgroup "$0" "$@"
fi

scratch=$1
shift 2
root=$scratch/root

mount -t tmpfs -o mode=0755 scratch "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" root "$root"

while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 3
done

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"       # PID 1 sets sysctls, and those are the host's
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=0755 dev "$root/dev"     # with the host's, the journal would put its sockets there
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
for device in null zero full random urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
: > "$root/dev/nvidia0"                         # stands in for a GPU: a character device anybody may open
mount --bind /dev/zero "$root/dev/nvidia0"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Of all that this machine would start at boot, only the journal is wanted.
units=$root/usr/lib/systemd
rm -rf "$units"/system/*.wants "$units"/system-generators "$root"/etc/systemd/system "$root"/etc/systemd/user
mkdir -p "$root/etc/systemd/system" "$units/system/sysinit.target.wants"
ln -s ../systemd-journald.service "$units/system/sysinit.target.wants/systemd-journald.service"
: > "$root/etc/fstab"
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
echo 'trainer:x:4711:4711::/home/trainer:/bin/sh' >> "$root/etc/passwd"
echo 'trainer:x:4711:' >> "$root/etc/group"
install -d -m 0700 -o 4711 -g 4711 "$root/home/trainer"

hostname own-systemd
ip link set lo up 2> /dev/null || true          # nothing under test needs it up
cd "$root"
mkdir -p mnt/host
pivot_root . mnt/host
umount --lazy /mnt/host
mount --make-rshared /                          # as on a real machine; systemd takes it for granted in a container
exec env -i container=own PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 chroot / \
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
