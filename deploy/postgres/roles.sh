#!/bin/sh
# Makes the roles of the pooler and of the exporter, or gives them the passwords of today (roles.sql).
set -eu
for secret in postgres_password pgbouncer_password exporter_password; do
    if [ ! -s "/run/secrets/$secret" ]; then
        echo "the secret $secret is missing or empty: run deploy/secrets.sh" >&2
        exit 1
    fi
done
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD PGCONNECT_TIMEOUT=30
if ! said=$(psql -X -q -c 'SELECT' 2>&1); then
    case $said in
    *"password authentication failed"*)
        echo "the database refuses the password in the secret postgres_password: it was made with another one (see docs/OPERATIONS.md, Rotating passwords)" >&2 ;;
    *) echo "the database does not answer: $said" >&2 ;;
    esac
    exit 1
fi
psql -X -q -v ON_ERROR_STOP=1 -f /etc/bigbrotr/roles.sql
echo "the roles pgbouncer and exporter are ready"
