#!/usr/bin/env bash
# Runs one relay program in the foreground, in place of this shell:  relay.sh python|npm|local|rust PORT STATE_DIR
# Its data live in STATE_DIR; it listens on 127.0.0.1, or on HOST. `local` needs TESTRELAY, the path of that binary.
# Why a script: the Rust tests and three-relays.sh must start the very same programs in the very same way.
set -euo pipefail
. "$(dirname "$0")/common.sh"

kind=$1 port=$2 state=$3 host=${HOST:-127.0.0.1}
mkdir -p "$state"
cd "$state"
case $kind in
python)
    # As the program ships it, but for: the port, the database's place, events of any age, and quieter logs.
    cat >config.yaml <<YAML
relay_name: python relay
relay_description: relay written in python
storage:
  sqlalchemy.url: sqlite+aiosqlite:///$state/nostr.sqlite3
  num_concurrent_reqs: 10
  num_concurrent_adds: 2
  validators:
    - nostr_relay.validators.is_not_too_large
    - nostr_relay.validators.is_signed
verification: {nip05_verification: disabled, expiration: 2592000, update_frequency: 3600}
gunicorn: {bind: "$host:$port", host: "$host", workers: 1, loglevel: warning}
authentication: {enabled: false}
message_timeout: 1800
subscription_limit: 32
max_limit: 6000
max_event_size: 65536
logging:
  version: 1
  root: {level: WARNING}
YAML
    # uvicorn: one process, so that its pid is all there is to end.
    exec "$testbed/nostr-relay/bin/nostr-relay" -c config.yaml serve --use-uvicorn
    ;;
npm)
    PORT=$port HOST=$host DB=$state/relay.sqlite3 NODE_PATH=$testbed/npm/node_modules exec node "$tools_dir/npm-relay.js"
    ;;
local)
    exec "${TESTRELAY:?the path of the testrelay binary}" local --host "$host" --port "$port"
    ;;
rust)
    # As it ships, but for the address, the port and events of any age.
    cat >config.toml <<TOML
[info]
relay_url = "ws://$host:$port/"
name = "nostr-rs-relay"
[network]
address = "$host"
port = $port
[options]
reject_future_seconds = 0
TOML
    exec "$testbed/nostr-rs-relay/nostr-rs-relay" --config config.toml --db "$state"
    ;;
*) die "usage: relay.sh python|npm|local|rust PORT STATE_DIR" ;;
esac
