"""One pass of the original's own synchroniser over relays of ours, into its own schema.

peer_sync.py FILE-WITH-URLS prints one JSON object; DATABASE_URL names the database. Its service is run as it is, with its
defaults, but that it reads up to now and not up to yesterday (our events are of the last three months), and that its names
of relays lead to addresses of this machine without TLS, which it would refuse to take.
"""

import asyncio
import json
import os
import resource
import secrets
import sys
import time
from urllib.parse import urlsplit

from nostr_sdk import RelayUrl

from bigbrotr.core import Brotr
from bigbrotr.models import Relay
from bigbrotr.services.synchronizer import Synchronizer, SynchronizerConfig
from bigbrotr.utils import protocol


def name(n):
    return f"wss://r{n}.relays.example"


def lead(addresses):
    """Its own connecting, to these addresses instead of what the names say."""

    class Names:
        @staticmethod
        def parse(url):
            return RelayUrl.parse(addresses[url])

    protocol.RelayUrl = Names


def spent():
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


async def main():
    with open(sys.argv[1]) as lines:
        addresses = {name(n): line.strip() for n, line in enumerate(lines)}
    lead(addresses)
    # It answers relays that ask who it is; ours do not.
    os.environ["NOSTR_PRIVATE_KEY"] = secrets.token_hex(32)
    at = urlsplit(os.environ["DATABASE_URL"])
    database = {
        "host": at.hostname,
        "port": at.port,
        "database": at.path.removeprefix("/"),
        "user": at.username,
        # Any: the private server asks for none.
        "password": at.password or "none",
    }
    brotr = Brotr.from_dict({"pool": {"database": database, "limits": {"min_size": 2}}})
    config = SynchronizerConfig(processing={"end_lag": 0})
    async with brotr, Synchronizer(brotr=brotr, config=config) as synchronizer:
        await brotr.insert_relay([Relay(url) for url in addresses])
        began, cpu = time.monotonic(), spent()
        stored = await synchronizer.synchronize()
        seconds, cpu = time.monotonic() - began, spent() - cpu
    print(
        json.dumps(
            {
                "stored": stored,
                "seconds": seconds,
                "cpu_s": cpu,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


asyncio.run(main())
