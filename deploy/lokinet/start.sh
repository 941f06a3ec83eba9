#!/bin/bash
# Lokinet and the proxy into it; where one of them ends, so does the other.
trap 'kill $(jobs -p) 2>/dev/null' TERM INT
lokinet /etc/lokinet/workers.ini &
microsocks -q -p 1080 &
wait -n
kill $(jobs -p) 2>/dev/null
wait
echo "lokinet or the proxy before it has ended" >&2
exit 1
