#!/usr/bin/env bash
# Boots systemd in namespaces of its own, on a copy of this machine's files that is gone afterwards, and runs a script as
# a service there:  booted.sh FOLDER
# FOLDER has `driver`, the script, which finds the folder at the same path, read and written by it; what it says comes to
# standard output. It needs root, overlayfs and cgroup2. Nothing of the machine is changed: no service, no setting.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$1

if [ "${2:-}" != inside ]; then
    group=$(findmnt -nt cgroup2 -o TARGET | head -1)
    [ -n "$group" ] || { echo 'booted: no cgroup2 is mounted' >&2; exit 1; }
    group=$group/bigbrotr-booted-$$
    mkdir "$group"
    # Groups of services that have ended, from the leaves up.
    trap 'find "$group" -depth -type d -exec rmdir {} +' EXIT
    (
        echo $BASHPID >"$group/cgroup.procs"
        exec timeout -s KILL 240 unshare --mount --pid --cgroup --net --uts --ipc --fork --kill-child=KILL -- "$0" "$folder" inside
    ) >"$folder/boot.log" 2>&1 || true
    cat "$folder/said" || { tail -20 "$folder/boot.log" >&2; exit 1; }
    [ "$(cat "$folder/ended")" = success ]
    exit
fi

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
ip link set lo up
hostname booted
mount -t proc proc proc
# Settings of the kernel are the machine's: systemd leaves alone what it may not write.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
touch dev/console
mount --bind /dev/null dev/console
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p ".$folder"
mount --bind "$folder" ".$folder"
: >etc/machine-id
# Nothing of the machine's own starts.
rm -rf etc/systemd/system/*.wants
cat >etc/systemd/system/driver.service <<UNIT
[Unit]
Description=what is tried
[Service]
Type=oneshot
ExecStart=$folder/driver
ExecStopPost=/bin/sh -c 'echo \$\$SERVICE_RESULT >$folder/ended'
ExecStopPost=/bin/systemctl --force --force poweroff
StandardOutput=append:$folder/said
StandardError=append:$folder/said
TimeoutStartSec=200
UNIT
cat >etc/systemd/system/driver.target <<UNIT
[Unit]
Requires=driver.service
After=driver.service
Wants=systemd-journald.service
UNIT
# Not a chroot, in which nobody may make a namespace of users.
mkdir old
pivot_root . old
umount -l /old
# What services are shown by mounts reaches them so.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=driver.target --log-target=console --show-status=0
