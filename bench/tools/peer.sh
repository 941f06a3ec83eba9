#!/usr/bin/env bash
# The peer of the benchmarks: the original, in a virtual environment of its own; prints its python.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${CARGO_TARGET_DIR:-target}/peer
if ! "$venv/bin/python" -c 'import bigbrotr' 2>/dev/null; then
    python3 -m venv "$venv" >&2
    # A plain install takes a newer nostr-sdk and does not start.
    "$venv/bin/pip" install --quiet 'bigbrotr==6.6.9' 'nostr-sdk==0.44.2' >&2
fi
realpath -s "$venv/bin/python"
