#!/bin/sh
/etc/database stop
sync
umount /srv/wal /srv/data 2>/dev/null
mount -o remount,ro /
