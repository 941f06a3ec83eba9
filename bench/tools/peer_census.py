"""The original's probes in its own loop: chunks of 100 with a barrier, thirty at a time, nothing stored.

peer_census.py validate|monitor FILE-WITH-URLS prints one JSON object. A URL's host tells the truth about it:
r… is a relay, anything else is not.
"""

import asyncio
import json
import logging
import resource
import sys
import time

from bigbrotr.models import Relay
from bigbrotr.utils import protocol

CHUNK = 100
AT_ONCE = 30
TIMEOUT = 10.0
# Its TLS library knows public authorities only, and words the refusal in a way it does not recognise: without this its
# own fallback is never tried and every relay of the fleet fails. The fallback costs it a second connection.
protocol._is_ssl_error = lambda message: "certificate" in message


def probe_validate():
    from bigbrotr.services.validator.utils import validate_candidate

    async def probe(relay):
        return await validate_candidate(relay, None, TIMEOUT, allow_insecure=True)

    return probe


def probe_monitor():
    from nostr_sdk import EventBuilder, Filter, Keys, Kind, Tag

    from bigbrotr.nips.nip11 import Nip11, Nip11Options
    from bigbrotr.nips.nip66 import (
        Nip66DnsMetadata,
        Nip66HttpMetadata,
        Nip66RttDependencies,
        Nip66RttMetadata,
        Nip66SslMetadata,
    )

    keys = Keys.generate()

    async def probe(relay):
        options = Nip11Options(allow_insecure=True, max_size=1024 * 1024)
        nip11 = (await Nip11.create(relay, timeout=TIMEOUT, proxy_url=None, options=options)).info
        event = EventBuilder(Kind(22456), "nip66-test").tags([Tag.identifier(relay.url)])
        needs = Nip66RttDependencies(keys=keys, event_builder=event, read_filter=Filter().limit(1))
        rtt = await Nip66RttMetadata.execute(relay, needs, TIMEOUT, None, allow_insecure=True)
        ssl, dns, http = await asyncio.gather(
            Nip66SslMetadata.execute(relay, TIMEOUT),
            Nip66DnsMetadata.execute(relay, TIMEOUT),
            Nip66HttpMetadata.execute(relay, TIMEOUT, None, allow_insecure=True),
            return_exceptions=True,
        )
        del ssl, dns, http
        # Open and document are what every healthy relay of the fleet gives.
        return bool(rtt.logs.open_success) and bool(nip11 and nip11.logs.success)

    return probe


async def main():
    what, path = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    with open(path) as lines:
        urls = [line.strip() for line in lines]
    probe = probe_validate() if what == "validate" else probe_monitor()
    gate = asyncio.Semaphore(AT_ONCE)
    said = {}

    async def one(url):
        async with gate:
            try:
                said[url] = bool(await probe(Relay(url)))
            except Exception:
                said[url] = False

    began, cpu = time.monotonic(), time.process_time()
    for at in range(0, len(urls), CHUNK):
        await asyncio.gather(*(one(url) for url in urls[at : at + CHUNK]))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu

    def honest(url):
        return url.removeprefix("wss://").startswith("r")

    print(
        json.dumps(
            {
                "per_s": len(urls) / seconds,
                "cpu_s_per_1k": cpu / len(urls) * 1000,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "missed": sum(honest(url) and not alive for url, alive in said.items()),
                "wrong": sum(not honest(url) and alive for url, alive in said.items()),
            }
        )
    )


asyncio.run(main())
