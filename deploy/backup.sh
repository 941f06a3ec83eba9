#!/bin/sh
# A base backup of the compose stack's database, and a stack made of one.
#   deploy/backup.sh take FILE              while it runs: everything, as a tar with the WAL it needs
#   deploy/backup.sh restore FILE           into a stack that has no data yet: as of the end of the backup
#   deploy/backup.sh restore FILE latest    and on, through the WAL in POSTGRES_ARCHIVE_DIR, as far as it goes
#   deploy/backup.sh restore FILE POINT     and on, to the restore point POINT (pg_create_restore_point)
# After a restore `docker compose up -d` starts the stack, with the secrets of when the backup was taken.
set -eu
# FILE is meant from where the caller stands.
case ${2:-} in
"" | /*) ;;
*) verb=$1 file=$PWD/$2; shift 2; set -- "$verb" "$file" "$@" ;;
esac
cd "$(dirname "$0")/.."

say() { echo "backup: $*" >&2; }

take() {
    # The file holds everything, the roles' passwords as verifiers too: it is for whoever took it.
    umask 077
    # Through a pipe: no folder of this machine must belong to the server's user. The WAL that the backup needs is fetched at
    # its end, however long that takes and whatever is written meanwhile: a slot keeps it, and goes with this session.
    if ! docker compose exec -T postgres psql -qX -U postgres -d postgres -v ON_ERROR_STOP=1 -v slot="backup_$$" >"$1.part" <<'SQL'
SELECT pg_create_physical_replication_slot(:'slot', true, true) \g /dev/null
\! pg_basebackup -U postgres -D - -F t -X fetch -c fast
\if :SHELL_ERROR
DO $$ BEGIN RAISE 'pg_basebackup failed'; END $$;
\endif
SQL
    then
        rm -f "$1.part"
        say "the server gave no backup"
        exit 1
    fi
    mv "$1.part" "$1"
    say "$1 holds $(du -h "$1" | cut -f1)"
}

restore() {
    [ -s "$1" ] || { say "$1 is no backup"; exit 2; }
    point=${2:-}
    case $point in *[!A-Za-z0-9_.-]*) say "a restore point's name has letters, digits, _ . - only here: $point"; exit 2 ;; esac
    # In each case a recovery that ends in a new timeline: in the old one the server would archive under names that are taken.
    RECOVERY="restore_command = 'test -f \"/wal/%f\" && cp \"/wal/%f\" \"%p\"'
recovery_target_action = promote"
    case $point in
    "")
        # With the WAL that the backup brought; what is archived only says which timelines there are.
        RECOVERY="restore_command = 'case \"%f\" in *.history) test -f \"/wal/%f\" && cp \"/wal/%f\" \"%p\" ;; *) exit 1 ;; esac'
recovery_target_action = promote
recovery_target = immediate
recovery_target_timeline = current" ;;
    latest) ;;
    *)
        RECOVERY="$RECOVERY
recovery_target_name = '$point'" ;;
    esac
    export RECOVERY
    # shellcheck disable=SC2016
    docker compose run --rm --no-deps -T -e RECOVERY --entrypoint sh postgres -c '
        set -eu
        if [ -e "$PGDATA/PG_VERSION" ]; then
            echo "backup: this stack has data already: remove its volume first, or restore beside it" >&2
            exit 1
        fi
        mkdir -p "$PGDATA"
        chmod 700 "$PGDATA"
        tar -x -C "$PGDATA"
        # Those of an earlier restore came along: two targets are none.
        sed -i -E "/^(restore_command|recovery_target[a-z_]*) *=/d" "$PGDATA/postgresql.auto.conf"
        echo "$RECOVERY" >>"$PGDATA/postgresql.auto.conf"
        touch "$PGDATA/recovery.signal"' <"$1"
    say "restored; docker compose up -d starts it"
}

case ${1:-} in
take) take "${2:?FILE}" ;;
restore) restore "${2:?FILE}" "${3:-}" ;;
*) echo "usage: deploy/backup.sh take FILE | restore FILE [latest|POINT]" >&2; exit 2 ;;
esac
