#!/bin/sh
# Makes the secrets that compose.yaml names: a random password each, in a file each. What is there stays as it is.
#   deploy/secrets.sh [DIR]     DIR is `secrets` beside compose.yaml
# The folder is yours alone. The files in it are readable, because each container has a user of its own and sees only
# those that are mounted into it: nobody else on this machine gets through the folder.
set -eu
dir=${1:-$(cd "$(dirname "$0")/.." && pwd)/secrets}
umask 077
mkdir -p "$dir"
chmod 700 "$dir"
for folder in worker alertmanager; do
    mkdir -p "$dir/$folder"
    chmod 755 "$dir/$folder"
done
made=0
for name in postgres admin writer refresher reader pgbouncer exporter grafana; do
    file=$dir/${name}_password
    if [ -e "$file" ]; then
        [ -s "$file" ] || echo "secrets: $file is empty: remove it, and run this again, or write a password into it" >&2
        continue
    fi
    # 32 letters and digits: 190 bits, and nothing that a URL or a shell would read.
    password=$(LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32)
    [ ${#password} = 32 ] || { echo "secrets: /dev/urandom gave nothing" >&2; exit 1; }
    printf '%s' "$password" >"$file.part"
    chmod 444 "$file.part"
    mv "$file.part" "$file"
    made=$((made + 1))
done
echo "secrets: $made made in $dir"
