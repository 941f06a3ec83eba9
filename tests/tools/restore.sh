#!/usr/bin/env bash
# Starts a server on a base backup and what was archived since, as an operator would after a loss.
#   restore.sh start BACKUP WAL [POINT]   restore up to the restore point POINT (else to the end), start, print its admin URL
#   restore.sh stop BACKUP                stop it; the folders are the caller's
# BACKUP is what pg_basebackup wrote, WAL the folder that archive_command filled; PG_BIN names the server
# programs, PG_OPTIONS adds options of the server.
set -euo pipefail
. "$(dirname "$0")/common.sh"

bin=$(pg_bin)
backup=$2
owner=$(id -un)
[ "$(id -u)" != 0 ] || { owner=postgres; id postgres >/dev/null 2>&1 || owner=nobody; }
as_owner() {
    if [ "$(id -u)" != 0 ]; then "$@"; else
        setpriv --reuid="$owner" --regid="$(id -g "$owner")" --init-groups env HOME="$backup" "$@"
    fi
}

start() {
    local wal=$1 point=${2:-} port
    port=$(free_port)
    {
        echo "restore_command = 'cp \"$wal/%f\" \"%p\"'"
        echo "recovery_target_action = promote"
        [ -z "$point" ] || echo "recovery_target_name = '$point'"
        # What the server of before archived is not this one's to add to.
        echo "archive_mode = off"
    } >>"$backup/postgresql.auto.conf"
    touch "$backup/recovery.signal"
    chmod 700 "$backup"
    [ "$(id -u)" != 0 ] || chown -R "$owner" "$backup" "$wal"
    as_owner "$bin/pg_ctl" start -s -w -t 60 -D "$backup" -l "$backup/log" \
        -o "-p $port -k $backup -c listen_addresses=127.0.0.1 -c max_connections=200 ${PG_OPTIONS:-}" </dev/null >/dev/null 2>&1 || { cat "$backup/log" >&2; die "the restored server did not start"; }
    local url=postgres://postgres@127.0.0.1:$port/postgres try
    for try in $(seq 200); do
        [ "$("$bin/psql" -qAtX "$url" -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" != f ] || { echo "$url"; return; }
        sleep 0.1 # bound: 200 turns
    done
    cat "$backup/log" >&2
    die "the recovery did not end (looked $try times)"
}

case ${1:-} in
start) start "${@:3}" ;;
stop) as_owner "$bin/pg_ctl" stop -s -w -m immediate -D "$backup" ;;
*) die "usage: restore.sh start BACKUP WAL [POINT] | stop BACKUP" ;;
esac
