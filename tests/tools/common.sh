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

# Debian packages make and start services when installed; both are switched off for the time of the install.
apt_install() {
    have apt-get || { lack "packages $* are missing and there is no apt-get"; return 0; }
    say "installing $*"
    local undo=()
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null || { lack "no root rights to install $*"; return 0; }
        as_root chmod 755 /usr/sbin/policy-rc.d
        undo+=(/usr/sbin/policy-rc.d)
    fi
    local no_cluster=/etc/postgresql-common/createcluster.d/bigbrotr-tests.conf
    as_root mkdir -p "$(dirname $no_cluster)"
    echo 'create_main_cluster = false' | as_root tee $no_cluster >/dev/null
    undo+=("$no_cluster")
    # shellcheck disable=SC2064
    trap "as_root rm -f ${undo[*]}" EXIT
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    as_root "${install[@]}" >/dev/null 2>"$testbed/apt.log" \
        || { as_root apt-get update -qq && as_root "${install[@]}" >/dev/null 2>"$testbed/apt.log"; } \
        || { tail -n 5 "$testbed/apt.log" >&2; lack "could not install $*"; }
    as_root rm -f "${undo[@]}"
    trap - EXIT
}

# The mirror that this machine's apt uses for Debian, or nothing.
debian_mirror() { apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1; }

# Packages of a suite of Debian, unpacked and never installed: unpack_debs SUITE SCRATCH ROOT PACKAGE…
# apt's own configuration and state are not touched.
unpack_debs() (
    suite=$1 scratch=$2 into=$3
    shift 3
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { echo "apt knows no mirror of Debian"; exit 1; }
    rm -rf "$scratch" && mkdir -p "$scratch"/{lists/partial,cache/archives/partial,debs} "$into" || exit 1
    : >"$scratch/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$scratch/sources.list"
    # Names beside these lists, such as those of app stores, are of no use here: Packages alone is fetched.
    apt=(apt-get -qq -o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=-
        -o Dir::State="$scratch" -o Dir::State::status="$scratch/status" -o Dir::Cache="$scratch/cache"
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    cd "$scratch/debs" && "${apt[@]}" update && "${apt[@]}" download "$@" || exit 1
    for package in *.deb; do dpkg-deb -x "$package" "$into" || exit 1; done
    rm -rf "$scratch"
)
