#!/usr/bin/env bash
# An image of the relay programs in the test bed, for the network of containers:  relay-image.sh TAG TESTRELAY
# It is made of files of this machine alone: the programs, and the libraries and interpreters that they run with here.
#   docker run … TAG /tools/relay.sh python|npm|local PORT /state          /testrelay publish …
set -euo pipefail
. "$(dirname "$0")/common.sh"

tag=$1 testrelay=$2
venv=$testbed/nostr-relay modules=$testbed/npm/node_modules
[ -e "$venv/installed" ] && [ -d "$modules" ] || die "the relay programs are not in the test bed: run tests/tools/setup.sh"
root=$(mktemp -d "${TMPDIR:-/tmp}/bigbrotr-relays.XXXXXX")
trap 'rm -rf "$root"' EXIT

# With all folders above it, and whatever it is a link to.
take() { tar -C / --exclude=__pycache__ --exclude=site-packages/pip --exclude=test --exclude='*.a' -c "${@#/}" | tar -x -C "$root"; }

python=$(readlink -f "$venv/bin/python")
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
library=$("$python" -c 'import os; print(os.path.dirname(os.__file__))')
node=$(readlink -f "$(command -v node)")
programs=(/usr/bin/env /bin/bash /bin/sh /bin/cat /bin/mkdir /usr/bin/dirname /bin/sleep)

take "$venv" "$modules" "$library"
mkdir -p "$root"/{bin,usr/bin,tmp,etc}
install -m 755 "$node" "$root/usr/bin/node"
install -m 755 "$testrelay" "$root/testrelay"
for program in "${programs[@]}" "$python"; do
    mkdir -p "$root$(dirname "$program")"
    cp -L "$program" "$root$program"
done
# The links by which the environment finds its interpreter.
link=$venv/bin/python
while [ -L "$link" ]; do
    to=$(readlink "$link")
    case $to in /*) ;; *) to=$(dirname "$link")/$to ;; esac
    mkdir -p "$root$(dirname "$link")"
    [ -e "$root$link" ] || cp -P "$link" "$root$link"
    link=$to
done
# Every library that one of them loads.
{
    printf '%s\n' "${programs[@]}" "$python" "$node" "$testrelay"
    find "$venv" "$modules" "$library" -name '*.so' -o -name '*.so.*' -o -name '*.node'
} | while read -r file; do ldd "$file" 2>/dev/null || true; done | grep -o '/[^ ]*' | sort -u | while read -r file; do
    [ -e "$root$file" ] || { mkdir -p "$root$(dirname "$file")"; cp -L "$file" "$root$file"; }
done
mkdir -p "$root/tools"
cp "$tools_dir"/{common.sh,relay.sh,npm-relay.js} "$root/tools/"
printf 'root:x:0:0:root:/tmp:/bin/sh\n' >"$root/etc/passwd"
chmod 1777 "$root/tmp"
cat >"$root/Dockerfile" <<DOCKERFILE
FROM scratch
COPY . /
ENV PATH=/usr/bin:/bin BIGBROTR_TESTBED=$testbed TESTRELAY=/testrelay HOST=0.0.0.0 HOME=/tmp
DOCKERFILE
docker build -q -t "$tag" "$root" >/dev/null
