"""A node that listens to mDNS while ten thousand services are made up, as a process:
`python -m kit.mdns_flood COUNT`.

Only loopback hears of it. Prints how much the process grew, how many addresses it remembers, how
many fakes of bob came so far, and which address of bob is the first once he has spoken.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kit.bare_nodes import LOOPBACK, an_id
from peer.discovery import DiscoveryContext
from peer.discovery.mdns import PREFIX, TYPE, Mdns
from peer.identity.roster import Member, Roster

GROUP = ("224.0.0.251", 5353)
IDS = {name: an_id(name) for name in ("alice", "bob")}
ROSTER = Roster(1, 0, tuple(Member(name, node_id) for name, node_id in IDS.items()))
ODD = ("\x1b[2J", "a b", "x" * 54, "%s", "{}")
PTR, TXT, SRV, A, IN = 12, 16, 33, 1, 1


def label(text: str) -> bytes:
    return (
        b"".join(bytes([len(part)]) + part.encode() for part in text.strip(".").split(".")) + b"\0"
    )


def record(name: str, kind: int, ttl: int, data: bytes) -> bytes:
    return label(name) + struct.pack("!HHIH", kind, IN, ttl, len(data)) + data


def announcement(
    instance: str, ip: str, port: int, txt: bytes, ttl: int = 4500, records: int = 4
) -> bytes:
    """One answer with all records of a service, or the first so many, as bytes."""
    service, host = f"{instance}.{TYPE}", f"{instance}.local."
    whole = [
        record(TYPE, PTR, ttl, label(service)),
        record(service, SRV, ttl, struct.pack("!HHH", 0, 0, port) + label(host)),
        record(service, TXT, ttl, txt),
        record(host, A, ttl, socket.inet_aton(ip)),
    ]
    return struct.pack("!HHHHHH", 0, 0x8400, 0, records, 0, 0) + b"".join(whole[:records])


def txt(**values: str) -> bytes:
    return b"".join(
        bytes([len(each)]) + each.encode() for each in (f"{k}={v}" for k, v in values.items())
    )


def multicaster() -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    return sender


def fakes(count: int, seed: int = 1) -> Iterator[bytes]:
    """Strangers, strangers with long TXTs, impostors of bob, and names of every odd kind."""
    rng = random.Random(seed)
    for i in range(count):
        unique = f"{rng.getrandbits(32):08x}"
        kind = i % 4
        if kind == 0:
            name, text = f"{an_id(unique)[:PREFIX]}-{unique}", txt(id="x", port="1")
        elif kind == 1:
            name, text = (
                f"{an_id(unique)[:PREFIX]}-{unique}",
                b"".join(b"\xff" + rng.randbytes(255) for _ in range(4)),
            )
        elif kind == 2:
            name, text = f"{IDS['bob'][:PREFIX]}-{unique}", txt(id=IDS["bob"][:PREFIX], port="7")
        else:
            name, text = rng.choice(ODD) + unique, b"\0"
        yield announcement(name, f"10.6.{rng.randrange(256)}.{rng.randrange(1, 255)}", 7, text)


def rss() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def main(count: int) -> None:
    around = DiscoveryContext(roster=ROSTER, me=IDS["alice"], missing=lambda: [IDS["bob"]])
    listening, sender = Mdns(around, [LOOPBACK]), multicaster()
    heard = 0
    note = listening.heard.note

    def counted(*given: object) -> None:
        nonlocal heard
        heard += 1
        note(*given)  # type: ignore[arg-type]

    listening.heard.note = counted  # type: ignore[method-assign, assignment]
    running = asyncio.create_task(listening.run())

    async def send(packets: Iterable[bytes]) -> None:
        for i, packet in enumerate(packets):
            sender.sendto(packet, GROUP)
            if i % 20 == 19:
                await asyncio.sleep(0.005)

    await asyncio.sleep(0.3)
    await send(fakes(400, seed=0))  # what is there once for all: code, caches of names
    await asyncio.sleep(0.5)
    gc.collect()
    before, heard = rss(), 0
    await send(fakes(count))
    await asyncio.sleep(0.5)
    gc.collect()
    grown, impostors, kept = rss() - before, heard, len(listening.heard)
    bob = IDS["bob"][:PREFIX]
    sender.sendto(
        announcement(f"{bob}-0123abcd", "10.0.0.2", 7443, txt(id=bob, port="7443")), GROUP
    )
    async with asyncio.timeout(20):
        while "10.0.0.2:7443" not in await listening.addresses(IDS["bob"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    first = (await listening.addresses(IDS["bob"]))[0]
    print(
        json.dumps({"rss_mb": grown, "addresses": kept, "impostors": impostors, "first": first}),
        flush=True,
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
