#!/bin/sh
# Before the image's own entry point: what would go wrong later, and silently, is said in one sentence.
set -eu
if [ ! -s "$POSTGRES_PASSWORD_FILE" ]; then
    echo "the secret postgres_password is missing or empty: run deploy/secrets.sh" >&2
    exit 1
fi
case " $* " in
*" archive_mode=off "*) ;;
*" archive_mode="*)
    # Without this the server would keep every WAL file until its disk is full. A volume without a folder is root's.
    if [ ! -w /wal ]; then
        echo "POSTGRES_ARCHIVE_MODE is on and user $(id -u) may not write to /wal: name a folder of its own in POSTGRES_ARCHIVE_DIR (see docs/OPERATIONS.md, Back up)" >&2
        exit 1
    fi ;;
esac
exec docker-entrypoint.sh "$@"
