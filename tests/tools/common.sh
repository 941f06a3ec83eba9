# Shared by the scripts beside it; sourced, never run.
# Why: one place decides where the test bed lives and how a missing tool is reported.

tools_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root_dir=$(cd "$tools_dir/../.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root_dir/target}
case $target_dir in /*) ;; *) target_dir=$root_dir/$target_dir ;; esac

# Everything the scripts install or start keeps its state here (removed by `cargo clean`).
testbed=${BIGBROTR_TESTBED:-$target_dir/testbed}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# A tool that cannot be had: fatal where nothing may be skipped, one visible line elsewhere.
lack() {
    if [ "${REQUIRE_ALL:-0}" = 1 ]; then die "$* (REQUIRE_ALL=1)"; fi
    say "SKIPPED: $*; tests that need it will say so"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else return 1; fi
}

# A loopback port nobody listens on at this moment.
free_port() {
    local port tries
    for tries in $(seq 50); do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
    done
    die "no free loopback port found in $tries tries"
}

# The newest directory of PostgreSQL server programs, or nothing.
pg_bin() {
    local dir
    if [ -n "${PG_BIN:-}" ]; then echo "$PG_BIN"; return; fi
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then echo "$dir"; return; fi
    done
    if have initdb && have postgres; then dirname "$(command -v initdb)"; fi
}

# The library that shows a process another wall clock, or nothing. MT: the one for programs with threads.
faketime_lib() {
    printf '%s\n' /usr/lib/*/faketime/libfaketimeMT.so.1 | while read -r lib; do [ ! -e "$lib" ] || echo "$lib"; done | head -1
}
