#!/bin/sh
# Mounts what there is; with both disks of the database there, starts it. The serial console is the ledger's alone.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run && mkdir -p /run/qga /run/postgresql && chown postgres /run/postgresql
mount -o remount,rw /
hostname database
ip link set lo up 2>/dev/null
if [ -b /dev/vdb ] && [ -b /dev/vdc ]; then
    mount -t ext4 /dev/vdb /srv/data && mount -t ext4 /dev/vdc /srv/wal && /etc/database start
fi
acpid -d -c /etc/acpi >/dev/null 2>&1 &
