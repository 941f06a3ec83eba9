#!/usr/bin/env bash
# The schema of the peer: the original's own SQL at its release 6.6.9 (its package does not carry it), beside the
# target directory; prints the directory. PEER_GIT names a clone to take it from.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=v6.6.9
sql=${CARGO_TARGET_DIR:-target}/peer-sql/$release
if [ ! -s "$sql/08_indexes.sql" ]; then
    git=$(mktemp -d)
    trap 'rm -rf "$git"' EXIT
    git clone --quiet --bare --depth 1 --branch "$release" "${PEER_GIT:-https://github.com/BigBrotr/bigbrotr.git}" "$git" >&2
    mkdir -p "$sql"
    git -C "$git" archive "$release" deployments/bigbrotr/postgres/init | tar -x -C "$sql" --strip-components=4
fi
realpath -s "$sql"
