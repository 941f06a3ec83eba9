#!/usr/bin/env bash
# Three relay programs nobody here wrote, holding 10,000 distinct events between them.
#   three-relays.sh start [STATE_DIR]   start, publish, write relays.txt, print the expected counts as JSON
#   three-relays.sh stop  [STATE_DIR]   end exactly those three processes
# Events lie within the last six days: a third of them on one relay, a third on two, a third on all three.
# COUNT and SEED change how many and which.
set -euo pipefail
. "$(dirname "$0")/common.sh"

kinds=(python npm local)
state=${2:-$testbed/three-relays}

# Ends a process that one of our pid files names, if it still is the one we started.
end() {
    local pid started
    read -r pid started <"$1"
    if [ "$(started_at "$pid")" = "$started" ]; then kill -KILL "$pid"; fi
    rm -f "$1"
}

# The kernel's start time of a process: with the pid, a name no other process ever has.
started_at() {
    [ ! -r "/proc/$1/stat" ] || sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20
}

stop() {
    local file
    for file in "$state"/*.pid; do
        [ ! -e "$file" ] || end "$file"
    done
    rm -rf "$state"
}

wait_until_it_listens() {
    local try
    for try in $(seq 400); do
        if (: <"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then return; fi
        [ -d "/proc/$3" ] || break
        sleep 0.1 # bound: 400 turns
    done
    cat "$state/$1.log" >&2
    die "the $1 relay does not listen (looked $try times)"
}

start() {
    stop
    mkdir -p "$state"
    local testrelay=${TESTRELAY:-} kind port pid
    if [ -z "$testrelay" ]; then
        (cd "$root_dir" && cargo build -q -p tests --bin testrelay)
        testrelay=$target_dir/debug/testrelay
    fi
    trap 'status=$?; [ $status = 0 ] || stop' EXIT
    for kind in "${kinds[@]}"; do
        port=$(free_port)
        TESTRELAY=$testrelay setsid "$tools_dir/relay.sh" "$kind" "$port" "$state/$kind" \
            </dev/null >"$state/$kind.log" 2>&1 &
        pid=$!
        echo "$pid $(started_at "$pid")" >"$state/$kind.pid"
        wait_until_it_listens "$kind" "$port" "$pid"
        echo "ws://127.0.0.1:$port" >>"$state/relays.txt"
    done
    # shellcheck disable=SC2046
    "$testrelay" publish --count "${COUNT:-10000}" --seed "${SEED:-1}" --span-days 6 --copies mixed \
        $(cat "$state/relays.txt") | tee "$state/expected.json"
    say "seed file: $state/relays.txt"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*) die "usage: three-relays.sh start|stop [STATE_DIR]" ;;
esac
