#!/bin/sh
# Before the image's own entry point: a secret that is not there is said in one sentence.
set -eu
if [ ! -s "$POSTGRES_PASSWORD_FILE" ]; then
    echo "the secret postgres_password is missing or empty: run deploy/secrets.sh" >&2
    exit 1
fi
exec docker-entrypoint.sh "$@"
