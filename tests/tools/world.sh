#!/usr/bin/env bash
# The world outside as the test kit makes it (tests/src/world.rs):  world.sh DIR TESTRELAY
# Run in new namespaces of network and files, which it fills; they are gone with the process it becomes.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
dir=$1 testrelay=$2

ip link set lo up
# Two that count as global, and those that no name may lead to. The relay answers at each of them.
for address in 11.22.33.1 11.22.33.2 10.0.0.1 100.64.0.1 169.254.169.254; do ip address add $address/32 dev lo; done
for address in 2a0f:ffff:1::1 2a0f:ffff:1::2 fd00::1 64:ff9b::a00:1; do ip address add $address/128 dev lo; done
# A wire on which everything sent is lost: neighbours that are known and are not there.
ip link add near type veth peer name far
ip link set near up
ip link set far up
ip address add 11.22.44.1/24 dev near
ip address add 2a0f:ffff:2::1/64 dev near nodad
ip neighbour add 11.22.44.9 lladdr 02:00:00:00:00:09 dev near nud permanent
ip neighbour add 2a0f:ffff:2::9 lladdr 02:00:00:00:00:09 dev near nud permanent
# A way out for the old family, and none for the new one: where nothing of it is here, it cannot be reached.
ip route add default via 11.22.44.9 dev near

echo 'nameserver 127.0.0.1' >"$dir/resolv.conf"
mount --bind "$dir/resolv.conf" "$(readlink -f /etc/resolv.conf)"
exec setpriv --pdeathsig KILL -- "$testrelay" world "$dir"
