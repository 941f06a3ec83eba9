#!/usr/bin/env bash
# Runs the PgBouncer that setup.sh unpacked into the test bed, in place of this shell, with its own loader and
# libraries: the ones of this machine may be older than it needs.
set -euo pipefail
. "$(dirname "$0")/common.sh"

root=$testbed/pgbouncer/root
libs=$(dirname "$(find "$root" -name libc.so.6)")
loader=$(find "$libs" -name 'ld-linux*' | head -1)
exec "$loader" --library-path "$libs" "$root/usr/sbin/pgbouncer" "$@"
