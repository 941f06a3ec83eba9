#!/usr/bin/env bash
# A private PostgreSQL cluster for tests: temporary directory, Unix socket, free loopback port, no durability.
#   pg.sh start   start it (or find it running) and print its admin URL
#   pg.sh url     print the URL of the running one
#   pg.sh halt    end it at once and keep its data
#   pg.sh restart  end it at once, if it runs, and start it again
#   pg.sh stop    stop it and remove its directory
# BIGBROTR_PG_STATE names the file that remembers which cluster is meant; PG_BIN the server programs;
# PG_PASSWORD asks for SCRAM passwords over TCP instead of trust. PG_DURABLE=1 starts a cluster that keeps what it
# commits, as a server in service does, for the benchmarks; PG_OPTIONS adds options of the server.
set -euo pipefail
. "$(dirname "$0")/common.sh"

state=${BIGBROTR_PG_STATE:-$testbed/pg.state}
bin=$(pg_bin)
[ -n "$bin" ] || die "no PostgreSQL server programs found: run tests/tools/setup.sh or set PG_BIN"

# The server refuses to run as root; then another user owns the directory and the process.
owner=$(id -un)
[ "$(id -u)" != 0 ] || { owner=postgres; id postgres >/dev/null 2>&1 || owner=nobody; }
as_owner() {
    if [ "$(id -u)" != 0 ]; then "$@"; else
        setpriv --reuid="$owner" --regid="$(id -g "$owner")" --init-groups env HOME="$(dirname "$state")" "$@"
    fi
}

dir() { sed -n 1p "$state" 2>/dev/null; }
url() { sed -n 2p "$state" 2>/dev/null; }
running() { [ -s "$state" ] && "$bin/pg_isready" -q -d "$(url)"; }

start() {
    if running; then url; return; fi
    local home port try auth=trust pw_args=() credentials=postgres durability options
    durability="-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c wal_level=minimal -c max_wal_senders=0"
    [ "${PG_DURABLE:-0}" != 1 ] || durability="-c shared_buffers=256MB -c max_wal_size=4GB"
    # One line: pg_ctl hands the options to a shell, which would take a second line for another command.
    options="-c listen_addresses=127.0.0.1 -c max_connections=200 -c timezone=UTC $durability ${PG_OPTIONS:-}"
    home=$(mktemp -d "${TMPDIR:-/tmp}/bigbrotr-pg.XXXXXX")
    if [ -n "${PG_PASSWORD:-}" ]; then
        auth=scram-sha-256
        credentials=postgres:$PG_PASSWORD
        (umask 077; printf '%s\n' "$PG_PASSWORD" >"$home/pw")
        pw_args=(--pwfile="$home/pw")
    fi
    [ "$(id -u)" != 0 ] || chown -R "$owner" "$home"
    mkdir -p "$testbed"
    as_owner "$bin/initdb" -D "$home/data" -U postgres -E UTF8 --locale=C.UTF-8 --no-sync -A trust \
        --auth-host=$auth "${pw_args[@]}" >"$testbed/initdb.log" 2>&1 || { cat "$testbed/initdb.log" >&2; die "initdb failed"; }
    for try in 1 2 3 4 5; do
        port=$(free_port)
        if as_owner "$bin/pg_ctl" start -s -w -t 30 -D "$home/data" -l "$home/log" \
            -o "-p $port -k $home $options" </dev/null >/dev/null 2>&1
        then
            printf '%s\n' "$home" "postgres://$credentials@127.0.0.1:$port/postgres" >"$state"
            url
            return
        fi
    done
    cat "$home/log" >&2
    die "the private cluster did not start in $try tries"
}

stop() {
    local home
    home=$(dir)
    [ -n "$home" ] || return 0
    if [ -e "$home/data/postmaster.pid" ]; then
        as_owner "$bin/pg_ctl" stop -s -w -m immediate -D "$home/data" || say "the cluster in $home was not running"
    fi
    rm -rf "$home" "$state"
}

halt() { as_owner "$bin/pg_ctl" stop -s -w -m immediate -D "$(dir)/data" || die "the cluster was not running"; }

# As after a power cut: no orderly end, the same port, the same data.
restart() {
    as_owner "$bin/pg_ctl" restart -s -w -t 30 -m immediate -D "$(dir)/data" -l "$(dir)/log" </dev/null >/dev/null 2>&1 || die "the cluster did not come back"
}

mkdir -p "$(dirname "$state")"
case ${1:-} in
start) start ;;
stop) stop ;;
halt) halt ;;
restart) restart ;;
url) running || die "no private cluster is running: pg.sh start"; url ;;
*) die "usage: pg.sh start|stop|halt|restart|url" ;;
esac
