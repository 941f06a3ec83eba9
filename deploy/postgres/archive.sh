#!/bin/sh
# PostgreSQL's archive_command: archive.sh %p %f [DIR]. Ends with 0 only when the file is whole and safe in DIR (/wal).
# It may be ended at any moment and be run again. What is there already is left alone: the same is well, another file of
# that name is an error, since two servers then write one timeline and a restore would take the wrong one.
set -eu
from=$1 dir=${3:-/wal}
to=$dir/$2
if [ -e "$to" ]; then
    if cmp -s "$from" "$to"; then exit 0; fi
    # The beginning of ours and no more is a copy that was cut short.
    if [ "$(stat -c %s "$to")" -ge "$(stat -c %s "$from")" ] || ! cmp -s -n "$(stat -c %s "$to")" "$from" "$to"; then
        echo "archive: $to is there and is another file: not overwritten (docs/MONITORING.md, PostgresArchivingFails)" >&2
        exit 1
    fi
fi
cp "$from" "$to.part"
sync "$to.part"
mv "$to.part" "$to"
sync "$dir"
