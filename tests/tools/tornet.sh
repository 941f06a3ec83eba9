#!/usr/bin/env bash
# A Tor network of this machine's own, and one onion service in it; nothing leaves loopback.
#   tornet.sh DIR PORT                   writes the network into DIR, a new folder, and prints the names of its processes
#   tornet.sh DIR HOST:PORT ADDRESS      the same at another address than 127.0.0.1, for whoever else can reach that
#   tornet.sh whole DIR                  does nothing, well, once those who carry circuits know each other
# Three directory authorities, which are relays too, more relays, the service, and a client with a SOCKS5 port.
# Each process is `tor --defaults-torrc /dev/null -f DIR/NAME/torrc`, in the foreground; all of them must run, the service
# and the client not before the network is whole: a service tries 28 circuits in five minutes, and where the first consensus
# names one relay it has spent them within seconds. The
# service leads to 127.0.0.1:PORT, its name appears in DIR/service/onion/hostname; the client's address is in DIR/socks,
# and what the torrc of another client needs to say in DIR/network.
set -euo pipefail
. "$(dirname "$0")/common.sh"

authorities=(a1 a2 a3)
relays=(r1 r2 r3 r4)
ports=()

# The part of a torrc that all have. $1: its directory
general() {
    cat <<CONF
DataDirectory $1
Log notice file $1/log
RunAsDaemon 0
ShutdownWaitLength 0
SafeLogging 0
$(cat "$dir/network")
CONF
}

# The part that makes it carry others' circuits. $1: name, $2: port
carrying() {
    cat <<CONF
Nickname $1
Address $here
ORPort $here:$2
AssumeReachable 1
SocksPort 0
ExitRelay 1
ExitPolicyRejectPrivate 0
ExitPolicy accept *:*
ContactInfo nobody@invalid
CONF
}

# The part of one that says who is in the network. $1: its port for directories
voting() {
    cat <<CONF
DirPort $here:$1
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
# Only the first votes of a network are so close; the later ones must have time to become known.
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
V3AuthVotingInterval 10
V3AuthVoteDelay 2
V3AuthDistDelay 2
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingDirAuthVoteExit *
TestingMinExitFlagThreshold 0
MinUptimeHidServDirectoryV2 0
CONF
}

make_authority() {
    local name=$1 home=$dir/$1 or=$2 at=$3 identity fingerprint
    mkdir -p -m 700 "$home/keys"
    echo secret | tor-gencert --create-identity-key --passphrase-fd 0 -m 12 -a "$here:$at" \
        -i "$home/keys/authority_identity_key" -s "$home/keys/authority_signing_key" \
        -c "$home/keys/authority_certificate" >"$home/gencert.log" 2>&1 || { cat "$home/gencert.log" >&2; die "tor-gencert failed"; }
    identity=$(sed -n 's/^fingerprint //p' "$home/keys/authority_certificate")
    # A tor that is asked who it is wants to know an authority first: any.
    fingerprint=$(tor --quiet --defaults-torrc /dev/null -f /dev/null --ignore-missing-torrc --list-fingerprint --DataDirectory "$home" \
        --ORPort "$or" --Nickname "$name" --Address "$here" \
        --DirAuthority "none 127.0.0.1:1 $(printf 'F%.0s' {1..40})" | sed -n 's/^[a-z0-9]* //p' | tr -d ' ' | tail -1)
    echo "DirAuthority $name orport=$or no-v2 v3ident=$identity $here:$at $fingerprint"
}

# Sets `port` to a free one that was not given before.
new_port() {
    port=$(free_port)
    while [[ " ${ports[*]} " == *" $port "* ]]; do port=$(free_port); done
    ports+=("$port")
}

make_network() {
    local target=$1 name home at=() or=() socks i
    have tor && have tor-gencert || die "tor is not installed (tests/tools/setup.sh)"
    mkdir -p -m 700 "$dir"
    for i in "${!authorities[@]}"; do
        new_port; at+=("$port")
        new_port; or+=("$port")
        make_authority "${authorities[$i]}" "${or[$i]}" "${at[$i]}" >"$dir/line.$i" &
    done
    wait
    [ "$(cat "$dir"/line.* | wc -l)" = ${#authorities[@]} ] || die "an authority could not be made"
    {
        echo "# Short intervals, addresses that are not public, no patience for the statistics of a real network."
        echo "TestingTorNetwork 1"
        echo "PathsNeededToBuildCircuits 0.67"
        # Second hops that are kept for days, chosen among seven, are now and then none that a path may take.
        echo "VanguardsLiteEnabled 0"
        cat "$dir"/line.*
    } >"$dir/network"
    for i in "${!authorities[@]}"; do
        home=$dir/${authorities[$i]}
        { general "$home"; carrying "${authorities[$i]}" "${or[$i]}"; voting "${at[$i]}"; } >"$home/torrc"
    done
    for name in "${relays[@]}"; do
        home=$dir/$name
        mkdir -m 700 "$home"
        new_port
        { general "$home"; carrying "$name" "$port"; } >"$home/torrc"
    done
    new_port; socks=$port
    mkdir -m 700 "$dir"/{client,service}
    { general "$dir/client"; echo "SocksPort 127.0.0.1:$socks"; } >"$dir/client/torrc"
    {
        general "$dir/service"
        echo "SocksPort 0"
        echo "HiddenServiceDir $dir/service/onion"
        echo "HiddenServicePort 80 $target"
    } >"$dir/service/torrc"
    echo "127.0.0.1:$socks" >"$dir/socks"
    printf '%s\n' "${authorities[@]}" "${relays[@]}" client service
}

# The latest consensus of an authority names all of them as keepers of descriptors.
is_whole() {
    [ "$(grep -c '^s .*HSDir' "$1/${authorities[0]}/cached-microdesc-consensus" 2>/dev/null)" = $((${#authorities[@]} + ${#relays[@]})) ]
}

if [ "${1:-}" = whole ] && [ -n "${2:-}" ]; then
    is_whole "$2"
    exit
fi
dir=${1:-} target=${2:-} here=${3:-127.0.0.1}
[ -n "$dir" ] && [ -n "$target" ] || die "usage: tornet.sh DIR PORT | DIR HOST:PORT ADDRESS | whole DIR"
case $target in *:*) ;; *) target=127.0.0.1:$target ;; esac
make_network "$target"
