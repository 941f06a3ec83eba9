#!/usr/bin/env bash
# The units of deploy/systemd at work, as docs/OPERATIONS.md installs them:  units.sh
# Run by booted.sh as the script `driver` of a folder with bin/, deploy/ and tools/. Prints a line per thing seen.
set -euo pipefail
folder=$(dirname "$(readlink -f "$0")")
cd "$folder"
export BIGBROTR_TESTBED=/tmp/testbed BIGBROTR_PG_STATE=/tmp/pg.state HOME=/root

seen() { echo "seen after $SECONDS s: $*"; }
fail() {
    echo "failed: $*"
    systemctl status --no-pager -n 20 'bigbrotr*' || true
    exit 1
}
until_true() { # SECONDS WHAT COMMAND…
    local turns=$(($1 * 10)) what=$2 turn
    shift 2
    for turn in $(seq $turns); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1 # bound: SECONDS
    done
    fail "not within $((turns / 10)) s: $what (looked $turn times)"
}
is() { [ "$(systemctl show -P "$2" "$1")" = "$3" ]; }
pid() { systemctl show -P MainPID "$1"; }

url=$(PG_PASSWORD=super PG_DURABLE=1 PG_OPTIONS='-c wal_level=replica -c max_wal_senders=4 -c fsync=off' tools/pg.sh start)
server=${url##*@}
server=${server%/*}
ask() { psql -qAtX -v ON_ERROR_STOP=1 "${url%/*}/${2:-bigbrotr}" -c "$1"; }
ask "CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'own'" postgres
ask 'CREATE DATABASE bigbrotr OWNER owner' postgres
ask "CREATE ROLE bigbrotr_backup LOGIN REPLICATION PASSWORD 'kept apart'" postgres

install -m 755 bin/* /usr/local/bin/
install -D -m 755 deploy/systemd/backup.sh /usr/local/lib/bigbrotr/backup.sh
install -m 644 deploy/systemd/bigbrotr* /etc/systemd/system/
install -d -m 755 /etc/bigbrotr
install -d -m 700 /etc/bigbrotr/credentials
printf '[database]\nurl = "postgres://bigbrotr_writer@%s/bigbrotr"\n' "$server" >/etc/bigbrotr/bigbrotr.toml
chmod 644 /etc/bigbrotr/bigbrotr.toml
(
    umask 077
    cd /etc/bigbrotr/credentials
    for role in admin writer refresher reader; do echo "$role-secret" >$role-password; done
    echo "postgres://owner:own@$server/bigbrotr" >migrate-url
    echo 'kept apart' >backup-password
)
# The database is elsewhere than the unit says: what an operator would do.
install -d /etc/systemd/system/bigbrotr-backup.service.d
printf '[Service]\nEnvironment=BACKUP_URL=postgres://bigbrotr_backup@%s/postgres\n' "$server" >/etc/systemd/system/bigbrotr-backup.service.d/database.conf
systemctl daemon-reload

systemctl start bigbrotr-migrate || fail 'the migration'
[ "$(ask 'SELECT count(*) > 0 FROM _sqlx_migrations')" = t ] || fail 'no schema'
seen 'a migration as the owner'

systemctl enable --now --no-block bigbrotr.target bigbrotr-worker@01 bigbrotr-worker@02 2>/dev/null
leases() { [ "$(ask 'SELECT count(*) FROM apalis.workers WHERE lease_until > now()')" = "$1" ]; }
# A worker's name begins with its process id.
holds() { [ "$(ask "SELECT count(*) FROM apalis.workers WHERE id LIKE 'worker-$1-%' AND lease_until > now()")" = "$2" ]; }
until_true 30 'two workers hold leases' leases 2
until_true 30 'a scheduler leads' eval "[ \"\$(ask 'SELECT count(*) FROM leader WHERE until > now()')\" = 1 ]"
ready() { bigbrotr health "127.0.0.1:$1"; }
for port in 9100 9101 9102; do until_true 30 "$port is ready" ready "$port"; done
seen 'a scheduler and two workers that are ready'

status=$(cat "/proc/$(pid bigbrotr-worker@01)/status")
owner=$(awk '/^Uid:/ {print $2}' <<<"$status")
[ "$owner" -ge 61184 ] && [ "$owner" -le 65519 ] || fail "runs as user $owner"
grep -q '^CapEff:.0*$' <<<"$status" || fail 'has capabilities'
grep -q '^CapBnd:.0*$' <<<"$status" || fail 'could have capabilities'
grep -q '^NoNewPrivs:.1$' <<<"$status" || fail 'could gain privileges'
grep -q '^Seccomp:.2$' <<<"$status" || fail 'may make any system call'
inside() { nsenter -t "$(pid bigbrotr-worker@01)" -m -- "$@"; }
! inside sh -c 'echo x >/etc/bigbrotr/x' 2>/dev/null || fail 'could write /etc'
! grep -qz secret "/proc/$(pid bigbrotr-worker@01)/environ" || fail 'has a secret in its environment'
seen "a worker as user $owner, confined"

before=$(pid bigbrotr-worker@01)
kill -KILL "$before"
until_true 30 'a killed worker is back' is bigbrotr-worker@01 NRestarts 1
until_true 30 'with a lease' eval 'holds "$(pid bigbrotr-worker@01)" 1'
seen 'a killed worker that came back'

last=$(pid bigbrotr-worker@02)
systemctl stop bigbrotr-worker@02
is bigbrotr-worker@02 Result success || fail "stopping ended in $(systemctl show -P Result bigbrotr-worker@02)"
holds "$last" 0 || fail 'its lease goes on'
seen 'a worker that stopped in order'

cp /etc/bigbrotr/bigbrotr.toml /tmp/kept.toml
echo 'nonsense = 1' >>/etc/bigbrotr/bigbrotr.toml
systemctl start --no-block bigbrotr-worker@02
until_true 20 'a wrong configuration fails' is bigbrotr-worker@02 ActiveState failed
is bigbrotr-worker@02 ExecMainStatus 2 || fail "exit code $(systemctl show -P ExecMainStatus bigbrotr-worker@02)"
is bigbrotr-worker@02 NRestarts 0 || fail 'it was started again'
cp /tmp/kept.toml /etc/bigbrotr/bigbrotr.toml
seen 'a wrong configuration that fails once'

mv /etc/bigbrotr/credentials/writer-password /tmp/kept
! systemctl start bigbrotr-worker@03 2>/dev/null || fail 'it started without its secret'
systemctl stop bigbrotr-worker@03 2>/dev/null || true
systemctl reset-failed 'bigbrotr-worker@*'
mv /tmp/kept /etc/bigbrotr/credentials/writer-password
seen 'no start without a secret'

systemctl start bigbrotr-backup || fail 'the backup'
[ -e /var/lib/bigbrotr-backup/base-*/backup_label ] || fail 'no backup is there'
systemctl is-enabled -q bigbrotr-backup.timer || systemctl enable --now -q bigbrotr-backup.timer
systemctl list-timers --no-pager bigbrotr-backup.timer | grep -q bigbrotr-backup || fail 'the timer is not set'
seen 'a backup'

last=$(pid bigbrotr-worker@01)
systemctl stop bigbrotr.target
for unit in bigbrotr-scheduler bigbrotr-worker@01; do until_true 45 "$unit stops with its target" is $unit ActiveState inactive; done
holds "$last" 0 || fail 'a lease is left'
[ "$(ask 'SELECT count(*) FROM leader WHERE until > now()')" = 0 ] || fail 'the lead is left'
seen 'all of it stopped by its target'
tools/pg.sh stop
echo 'all seen'
