#!/usr/bin/env bash
# Workers on two hosts and the database on a third, in the network namespace this runs in:
#   unshare -nm -- hosts.sh DIR BINARIES
# Hosts are namespaces on one bridge. The server takes TLS and passwords only. Everything ends with this script.
set -euo pipefail
. "$(dirname "$0")/common.sh"
PATH=$PATH:/usr/sbin:/sbin
dir=$1 binaries=$2
base=10.77.0

pids=()
finish() {
    local status=$?
    [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
    "$tools_dir/pg.sh" stop || true
    exit $status
}
trap finish EXIT
export BIGBROTR_PG_STATE=$dir/pg.state

ip link set lo up
ip link add bridge0 type bridge
ip address add $base.1/24 dev bridge0
ip link set bridge0 up
hosts=()
for n in 1 2; do
    unshare -n -- sleep 300 &
    pids+=($!)
    hosts+=($!)
    for try in $(seq 100); do
        [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ] || break
        sleep 0.05 # bound: 100 turns
    done
    ip link add "host$n" type veth peer name eth0 netns "$!"
    ip link set "host$n" master bridge0 up
    nsenter -t "$!" -n -- sh -c "ip link set lo up; ip address add $base.1$n/24 dev eth0; ip link set eth0 up"
done

# An authority, the server's certificate by it, and one that nobody asked for.
for name in authority other; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$name" \
        -keyout "$dir/$name.key" -out "$dir/$name.pem" 2>/dev/null
done
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
openssl x509 -req -in "$dir/server.csr" -CA "$dir/authority.pem" -CAkey "$dir/authority.key" -CAcreateserial -days 2 \
    -extfile <(printf 'subjectAltName=IP:%s.1' $base) -out "$dir/server.pem" 2>/dev/null
chown postgres "$dir/server.key"
chmod 600 "$dir/server.key"
url=$(PG_PASSWORD=super PG_OPTIONS="-c listen_addresses=* -c ssl=on -c ssl_cert_file=$dir/server.pem -c ssl_key_file=$dir/server.key" "$tools_dir/pg.sh" start)
echo "hostssl all all $base.0/24 scram-sha-256" >>"$(sed -n 1p "$BIGBROTR_PG_STATE")/data/pg_hba.conf"
ask() { psql -qAtX -v ON_ERROR_STOP=1 "${url%/*}/${2:-fleet}" -c "$1"; }
ask 'SELECT pg_reload_conf()' postgres >/dev/null
ask 'CREATE DATABASE fleet' postgres
BIGBROTR_WRITER_PASSWORD=secret "$binaries/bigbrotr" migrate --database-url "${url%/*}/fleet"
port=$(sed 's/.*:\([0-9]*\)\/.*/\1/' <<<"$url")
there=postgres://bigbrotr_writer:secret@$base.1:$port/fleet

# Forty candidates that are no relays: work for everybody.
for n in $(seq 40); do echo "ws://$base.1:$((9000 + n))"; done >"$dir/urls"
"$binaries/bigbrotr" --database-url "$there?sslmode=require" seed --allow-local "$dir/urls"
export BIGBROTR_NETWORK_ALLOW_LOCAL=true BIGBROTR_FLEET_HOST_JOBS=100 BIGBROTR_FLEET_HOST_SPACING_MS=0 \
    BIGBROTR_FLEET_BLOCK_JOBS=100 BIGBROTR_FLEET_BLOCK_SPACING_MS=0 BIGBROTR_WORKER_POLL_MS=100 BIGBROTR_WORKER_SLOTS_VALIDATE=2
worker() { # HOST QUERY LOG
    DATABASE_URL="$there?$2" nsenter -t "$1" -n -- setpriv --pdeathsig KILL -- "$binaries/worker" run 2>"$dir/$3.log" &
    pids+=($!)
}
worker "${hosts[0]}" "sslmode=verify-full&sslrootcert=$dir/other.pem" stranger
worker "${hosts[0]}" sslmode=disable plain
for refused in stranger plain; do
    for try in $(seq 300); do
        ! grep -q 'when the database answers' "$dir/$refused.log" || break
        sleep 0.1 # bound: 300 turns
    done
    grep -m1 'when the database answers' "$dir/$refused.log" | sed 's/.*error=/refused: /'
done
[ "$(ask 'SELECT count(*) FROM apalis.workers')" = 0 ] || die "a worker that must not was let in"
for n in 0 1; do worker "${hosts[$n]}" "sslmode=verify-full&sslrootcert=$dir/authority.pem" "worker$n"; done
DATABASE_URL="$there?sslmode=require" setpriv --pdeathsig KILL -- "$binaries/scheduler" run 2>"$dir/scheduler.log" &
pids+=($!)
for try in $(seq 600); do
    seen=$(ask "SELECT count(DISTINCT h.worker_id) || ' ' || count(DISTINCT h.target) FROM job_history h WHERE h.kind = 'validate' AND h.state = 'complete'")
    [ "$seen" != "2 40" ] || break
    sleep 0.1 # bound: 600 turns
done
[ "$seen" = "2 40" ] || { tail -3 "$dir"/*.log >&2; die "two workers and 40 candidates, not: $seen"; }
leases=$(ask "SELECT count(*) FROM apalis.workers WHERE lease_until > now()")
addresses=$(ask "SELECT string_agg(DISTINCT host(a.client_addr), ' ') FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.application_name LIKE 'bigbrotr worker%' AND s.ssl")
[ "$leases $addresses" = "2 $base.11 $base.12" ] || die "$leases leases, over TLS from $addresses"
echo "two hosts hold leases: $addresses"
