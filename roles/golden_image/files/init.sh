#!/bin/sh
# What the kernel starts first in a clone: it gives the machine its identity on the first boot, before anything has read another.
set -u

if [ ! -s /var/lib/vmw/instance-id ]; then
    mountpoint -q /proc || mount -t proc proc /proc
    mountpoint -q /sys || mount -t sysfs sysfs /sys
    mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
    # A template has no seed, and no identity but in its forks.
    if seed=$(blkid --label cidata) && mount -t iso9660 -o ro "$seed" /mnt; then
        /usr/lib/vmw/identity /mnt/vmw-identity
        umount /mnt
    else
        printf '\nvmw-identity: no seed, so this machine is nobody yet\n' >/dev/console
    fi
fi
exec /sbin/init "$@"
