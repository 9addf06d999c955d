#!/bin/sh
# inspect ROOT DATA LOG: judges the disks of a copy, named by their serial numbers, that are attached to this machine.
# Prints what it finds, then the audit of the database. Nothing of the copy stays in use.
find_disk() {
    tries=0
    while [ $tries -lt 300 ]; do
        for disk in /sys/block/vd*; do
            if [ "$(cat $disk/serial 2>/dev/null)" = "$1" ]; then echo /dev/${disk##*/}; return 0; fi
        done
        tries=$((tries + 1))
        sleep 0.1
    done
    echo "no disk has the serial number $1" >&2
    return 1
}

# Bit 4 of the incompatible features (byte 0x60 of the superblock at 1024): the journal has to be replayed.
journal() {
    byte=$(od -An -tu1 -j1120 -N1 $2) || exit 1
    if [ $((byte & 4)) -eq 0 ]; then echo "journal $1 clean"; else echo "journal $1 replay"; fi
}

root=$(find_disk $1) && data=$(find_disk $2) && log=$(find_disk $3) || exit 1
tries=0
while [ ! -b ${root}2 ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
journal root ${root}2
journal data $data
journal log $log

dmesg -c >/dev/null
if ! mount -t ext4 ${root}2 /mnt || ! mount -t ext4 $data /srv/data || ! mount -t ext4 $log /srv/wal; then
    umount /mnt /srv/data /srv/wal 2>/dev/null
    dmesg | tail -5 >&2
    exit 1
fi
echo "replays $(dmesg | grep -c 'recovery complete')"
dmesg | grep -i 'ext4.*error' | sed 's/^/kernel /'

rm -f /run/postgresql/log
/etc/database start
tries=0
until tanada-teller audit /run/postgresql/.s.PGSQL.5432 >/run/audit 2>/run/audit.why; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then cat /run/audit.why /run/postgresql/log >&2; break; fi
    sleep 0.2
done
if grep -q 'was not properly shut down' /run/postgresql/log; then echo 'database recovered'; else echo 'database clean'; fi
grep -E ' (PANIC|FATAL|ERROR|WARNING): ' /run/postgresql/log | grep -vE 'starting up|not yet accepting' | sed 's/^/server /'
/etc/database stop
umount /mnt
umount /srv/wal
umount /srv/data
for part in ${root}2 $data $log; do
    if e2fsck -fn $part >/run/fsck 2>&1; then echo "check $part sound"; else echo "check $part damaged"; cat /run/fsck >&2; fi
done
cat /run/audit
