#!/bin/sh
# start (returns at once) or stop (returns when it is at rest) of the one cluster. What the server says is in /run, so that
# each boot has its own log and no snapshot has any.
as_postgres() { su postgres -s /bin/sh -c "/usr/lib/postgresql/15/bin/pg_ctl -s -D /srv/data/pg $*" </dev/null; }
case $1 in
start)
    : >>/run/postgresql/log && chown postgres /run/postgresql/log
    as_postgres -W -l /run/postgresql/log start >/dev/null 2>&1
    ;;
stop) as_postgres -m fast -w -t 60 stop ;;
esac
