#!/usr/bin/env bash
# Starts a server on a base backup and what was archived since, as an operator would after a loss.
#   restore.sh start BACKUP WAL [POINT]   restore up to the restore point POINT (else to the end), start, print its admin URL
#   restore.sh standby BACKUP             follow the server it came from (pg_basebackup -R), start, print its admin URL
#   restore.sh open BACKUP                start it as it is, with the WAL it brought along (-X stream), print its admin URL
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

# Starts the server and waits until it says, over its socket, that it is (t) or is not (f) in recovery.
serve() {
    local recovering=$1 port try
    port=$(free_port)
    chmod 700 "$backup"
    [ "$(id -u)" != 0 ] || chown -R "$owner" "$backup"
    as_owner "$bin/pg_ctl" start -s -w -t 60 -D "$backup" -l "$backup/log" \
        -o "-p $port -k $backup -c listen_addresses=127.0.0.1 -c max_connections=200 ${PG_OPTIONS:-}" </dev/null >/dev/null 2>&1 || { cat "$backup/log" >&2; die "the server on $backup did not start"; }
    local url=postgres://postgres@127.0.0.1:$port/postgres
    for try in $(seq 200); do
        [ "$("$bin/psql" -qAtX -h "$backup" -p "$port" -U postgres postgres -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" != "$recovering" ] || { echo "$url"; return; }
        sleep 0.1 # bound: 200 turns
    done
    cat "$backup/log" >&2
    die "the recovery did not come so far (looked $try times)"
}

start() {
    local wal=$1 point=${2:-}
    {
        echo "restore_command = 'cp \"$wal/%f\" \"%p\"'"
        echo "recovery_target_action = promote"
        [ -z "$point" ] || echo "recovery_target_name = '$point'"
        # What the server of before archived is not this one's to add to.
        echo "archive_mode = off"
    } >>"$backup/postgresql.auto.conf"
    touch "$backup/recovery.signal"
    [ "$(id -u)" != 0 ] || chown -R "$owner" "$wal"
    serve f
}

case ${1:-} in
start) start "${@:3}" ;;
standby) serve t ;;
open) serve f ;;
stop) as_owner "$bin/pg_ctl" stop -s -w -m immediate -D "$backup" ;;
*) die "usage: restore.sh start BACKUP WAL [POINT] | standby BACKUP | open BACKUP | stop BACKUP" ;;
esac
