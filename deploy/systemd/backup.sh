#!/usr/bin/env bash
# A base backup of the whole server, with the WAL that makes it consistent:  backup.sh [DIR]
# DIR is $STATE_DIRECTORY when not named. BACKUP_URL is the URL of a role with REPLICATION, straight to the server and
# without its password, which is in the file BACKUP_PASSWORD_FILE; BACKUP_KEEP backups are kept (2). A backup is whole
# when its name does not end in .part. It comes back as docs/OPERATIONS.md says, with or without an archive of WAL.
set -euo pipefail

die() { printf 'backup: %s\n' "$*" >&2; exit 1; }

dir=${1:-${STATE_DIRECTORY:-}}
keep=${BACKUP_KEEP:-2}
[ -n "$dir" ] || die "no folder: name one, or set STATE_DIRECTORY"
[ -d "$dir" ] || die "$dir is not there"
[[ $keep =~ ^[1-9][0-9]*$ ]] || die "BACKUP_KEEP must be a number from 1 on, not $keep"
[ -n "${BACKUP_URL:-}" ] || die "no database: set BACKUP_URL"
if [ -n "${BACKUP_PASSWORD_FILE:-}" ]; then
    # Not in the URL: that would be in the list of processes.
    PGPASSWORD=$(cat "$BACKUP_PASSWORD_FILE") || die "cannot read $BACKUP_PASSWORD_FILE"
    export PGPASSWORD
fi

# Names that sort by age. What an earlier run left half done is of no use.
new=$dir/base-$(date -u +%Y%m%dT%H%M%SZ)
[ ! -e "$new" ] || die "$new is there already"
rm -rf "$dir"/base-*.part
pg_basebackup -d "$BACKUP_URL" -D "$new.part" -c fast -X stream || die "pg_basebackup failed; older backups are untouched"
mv "$new.part" "$new"

mapfile -t all < <(printf '%s\n' "$dir"/base-* | sort)
for ((i = 0; i < ${#all[@]} - keep; i++)); do rm -rf "${all[i]}"; done
printf 'backup: %s\n' "$new"
