#!/usr/bin/env bash
# A container engine for the tests: the one that answers here, else our own, from Debian's packages, in the test bed.
#   docker.sh setup    fetch what our own engine and its images are made of (nothing where an engine answers)
#   docker.sh start    start our own, with base images and stand-ins; print what a shell must set to use it
#   docker.sh hindrance   print why there can be no engine; nothing where there can
#   docker.sh stop     stop it and take its interfaces and firewall rules out; its images stay in the test bed
# `eval "$(tests/tools/docker.sh start)"`. Ours has a socket, a data root, a network and images of its own: an
# engine that somebody else runs on this machine, and its images, are never touched. It needs root.
set -euo pipefail
. "$(dirname "$0")/common.sh"

# Where it really is: runc takes no path that leads over a link.
mkdir -p "$testbed/docker"
home=$(readlink -f "$testbed/docker")
root=$home/root
state=$home/state # where the running one has its socket, and what the machine was before
suite=trixie
packages=(docker.io docker-cli containerd docker-compose docker-buildx)
# Not what engines choose by themselves, so that one that is installed later finds its ranges free.
bridge=10.213.0.1/24 pool=10.214.0.0/16

is_theirs() { [ ! -s "$state" ] && have docker && docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }

# Why there can be none, or nothing.
hindrance() {
    if is_theirs; then return
    elif [ "$(id -u)" != 0 ]; then echo "no container engine answers, and one of our own needs root"
    elif ! have apt-get || ! have dpkg-deb; then echo "no container engine answers, and one of our own is made from Debian's packages"
    elif ! unshare --mount true 2>/dev/null; then echo "no container engine answers, and this machine allows none (no mount namespaces)"; fi
}

setup() {
    if is_theirs; then return; fi
    mkdir -p "$home"
    local why missing=() wanted="$suite ${packages[*]}"
    why=$(hindrance)
    [ -z "$why" ] || { lack "$why"; return 0; }
    have runc || missing+=(runc)
    { have iptables || [ -x /usr/sbin/iptables ]; } || missing+=(iptables)
    have mmdebstrap || missing+=(mmdebstrap)
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
    if [ "$(cat "$home/installed" 2>/dev/null)" != "$wanted" ]; then
        say "unpacking a container engine into $home"
        rm -rf "$root" "$home/installed"
        unpack_debs "$suite" "$home/debs" "$root" "${packages[@]}" >"$testbed/docker.log" 2>&1 \
            && "$root/usr/bin/docker" --version >>"$testbed/docker.log" 2>&1 \
            || { tail -n 5 "$testbed/docker.log" >&2; lack "could not fetch a container engine"; return 0; }
        echo "$wanted" >"$home/installed"
    fi
    "$tools_dir/docker-images.sh" fetch
}

# What a shell must set. The client of our engine comes first, its plug-ins are found by its own configuration.
settings() {
    mkdir -p "$home/config"
    printf '{"cliPluginsExtraDirs": ["%s"]}\n' "$root/usr/libexec/docker/cli-plugins" >"$home/config/config.json"
    printf 'export DOCKER_HOST=%q DOCKER_CONFIG=%q BIGBROTR_OWN_ENGINE=1 PATH=%q:"$PATH"\n' \
        "unix://$(sed -n 1p "$state")/docker.sock" "$home/config" "$root/usr/bin"
}

answers() { [ -s "$state" ] && "$root/usr/bin/docker" -H "unix://$(sed -n 1p "$state")/docker.sock" info >/dev/null 2>&1; }

start() {
    if is_theirs; then return; fi
    local why try run
    why=$(hindrance)
    [ -z "$why" ] || die "$why"
    [ -e "$home/installed" ] || die "no container engine: run tests/tools/docker.sh setup"
    if ! answers; then
        # Short: sockets have no long names.
        run=$(mktemp -d /tmp/bigbrotr-docker.XXXXXX)
        printf '%s\n' "$run" "$(cat /proc/sys/net/ipv4/ip_forward)" "$(iptables -S FORWARD | sed -n 's/^-P FORWARD //p')" >"$state"
        # Its own settings, not those of an engine that is installed here.
        echo '{}' >"$run/daemon.json"
        # It outlives this shell, and must not hold open what its callers hold, locks above all.
        PATH=$root/usr/sbin:$root/usr/bin:/usr/sbin:/sbin:/usr/bin:/bin:$PATH setsid dockerd -H "unix://$run/docker.sock" \
            --data-root "$home/data" --exec-root "$run/exec" --pidfile "$run/pid" --config-file "$run/daemon.json" --bip "$bridge" \
            --default-address-pool "base=$pool,size=24" --userland-proxy-path "$root/usr/sbin/docker-proxy" \
            --add-runtime "clamp=$tools_dir/engine/runc-clamp" --default-runtime clamp >"$testbed/dockerd.log" 2>&1 </dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
        for try in $(seq 120); do
            if answers || ! kill -0 $! 2>/dev/null; then break; fi
            sleep 0.5 # bound: 120 turns
        done
        answers || { tail -n 5 "$testbed/dockerd.log" >&2; stop; die "our container engine did not start (looked $try times)"; }
    fi
    # Images are built with the mirror's help; what then runs in them talks to itself alone, Tor above all.
    iptables -C DOCKER-USER -s "$pool" ! -d "$pool" -j DROP 2>/dev/null || iptables -I DOCKER-USER -s "$pool" ! -d "$pool" -j DROP
    eval "$(settings)"
    "$tools_dir/docker-images.sh" build >&2
    settings
}

# Interfaces and rules that an engine leaves behind when it ends.
clean() {
    local link table line chain
    for link in $(ip -o link show type bridge | sed -n 's/^[0-9]*: \(docker0\|br-[0-9a-f]\{12\}\):.*/\1/p'); do
        ! ip -o -4 address show dev "$link" | grep -qE ' 10\.21[34]\.' || ip link delete "$link"
    done
    for table in nat filter raw; do
        while read -r line; do eval "iptables -t $table $line"; done < <(iptables -t $table -S 2>/dev/null | sed -n '/DOCKER\|docker0\|br-[0-9a-f]\{12\}\|10\.21[34]\./s/^-A/-D/p')
        for chain in $(iptables -t $table -S 2>/dev/null | sed -n 's/^-N \(DOCKER.*\)/\1/p'); do iptables -t $table -F "$chain"; done
        for chain in $(iptables -t $table -S 2>/dev/null | sed -n 's/^-N \(DOCKER.*\)/\1/p'); do iptables -t $table -X "$chain"; done
    done
}

stop() {
    [ -s "$state" ] || return 0
    local run forward policy pid try
    { read -r run; read -r forward; read -r policy; } <"$state"
    pid=$(cat "$run/pid" 2>/dev/null || true)
    if answers; then
        # Each run makes images anew: what has no name any more, and all but the newest of the layers kept for builds, goes.
        (eval "$(settings)"; docker image prune -f && docker builder prune -f --keep-storage 3GB) >"$testbed/docker-prune.log" 2>&1 \
            || say "images of before could not be removed: $(tail -n 1 "$testbed/docker-prune.log")"
    fi
    if [ -n "$pid" ] && grep -qs dockerd "/proc/$pid/cmdline"; then
        kill "$pid"
        for try in $(seq 60); do
            [ -d "/proc/$pid" ] || break
            sleep 0.5 # bound: 60 turns
        done
        [ ! -d "/proc/$pid" ] || die "our container engine does not end (looked $try times)"
    fi
    clean
    iptables -P FORWARD "${policy:-ACCEPT}"
    echo "${forward:-0}" >/proc/sys/net/ipv4/ip_forward
    rm -rf "$run" "$state"
}

PATH=$PATH:/usr/sbin:/sbin
case ${1:-} in
setup) exec 9>"$home/lock"; flock 9; setup ;;
start) exec 9>"$home/lock"; flock 9; start ;;
hindrance) hindrance ;;
stop) stop ;;
*) die "usage: docker.sh setup|start|hindrance|stop" ;;
esac
