# What the hook of PostgreSQL needs to know in this guest, which has no systemd.
stop() { /etc/database stop; }
start() { /etc/database start; }
data=/srv/data/pg
control=/usr/lib/postgresql/15/bin/pg_controldata
at_rest() { tanada-teller mark /dev/ttyS0 stopped; }
