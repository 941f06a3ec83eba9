#!/usr/bin/env bash
# Runs a SOCKS5 server in the foreground, in place of this shell:
#   socks.sh microsocks|danted PORT DIR BARRED_PORT [USER PASSWORD]
# Run in a new namespace of files (tests/src/socks.rs): the names in DIR/hosts are all it knows, its resolver is none.
# microsocks takes USER and PASSWORD, danted bars BARRED_PORT.
set -euo pipefail
PATH=$PATH:/usr/sbin
program=$1 port=$2 dir=$3 barred=$4

# Nobody listens there: a name that is not in the file is refused at once, and never leaves this machine.
echo 'nameserver 127.255.255.254' >"$dir/resolv.conf"
mount --bind "$dir/hosts" /etc/hosts
mount --bind "$dir/resolv.conf" "$(readlink -f /etc/resolv.conf)"
case $program in
microsocks)
    login=()
    [ -z "${5:-}" ] || login=(-u "$5" -P "$6")
    exec setpriv --pdeathsig KILL -- microsocks -i 127.0.0.1 -p "$port" "${login[@]}"
    ;;
danted)
    cat >"$dir/danted.conf" <<CONF
logoutput: stderr
internal: 127.0.0.1 port = $port
external: lo
clientmethod: none
socksmethod: none
client pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }
socks block { from: 127.0.0.0/8 to: 0.0.0.0/0 port = $barred }
socks pass { from: 127.0.0.0/8 to: 0.0.0.0/0 log: connect error }
CONF
    exec setpriv --pdeathsig KILL -- danted -f "$dir/danted.conf" -p "$dir/pid"
    ;;
*) echo "usage: socks.sh microsocks|danted PORT DIR BARRED_PORT [USER PASSWORD]" >&2; exit 2 ;;
esac
