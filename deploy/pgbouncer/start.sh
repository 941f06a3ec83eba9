#!/bin/sh
# The list with the one role that PgBouncer itself logs in as, in memory, and the sizes of this machine; then PgBouncer.
set -eu
umask 077
secret=/run/secrets/pgbouncer_password
if [ ! -s "$secret" ]; then
    echo "the secret pgbouncer_password is missing or empty: run deploy/secrets.sh" >&2
    exit 1
fi
# In the list a quotation mark is written twice.
printf '"pgbouncer" "%s"\n' "$(sed 's/"/""/g' "$secret")" >/run/pgbouncer/users.txt
# Its last section goes on here: a second one of the same name would begin with every default again.
{
    cat /etc/pgbouncer/pgbouncer.ini
    echo "default_pool_size = ${POOL_SIZE:-40}"
    echo "max_client_conn = ${MAX_CLIENTS:-1000}"
} >/run/pgbouncer/pgbouncer.ini
exec pgbouncer /run/pgbouncer/pgbouncer.ini
