"""Many transfers at once from one node, in a process of its own:
`python -m kit.concurrent_transfers ADDRESS NODE_ID BOB CAROL` (their folders).

Bob opens 24 transfers over 3 links and lets them lie; each that ends is a line, "verdict" or
"refused CODE". At a line on standard input carol and then bob want a beat, which is a line too; at
the next all is closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kit.wire import SECONDS, Sender
from peer.errors import Unreachable
from peer.identity.keys import Identity
from peer.transport.grpc import Grpc, GrpcLink

MANY = 24


async def transfer(link: GrpcLink) -> None:
    try:
        await link.transfer(Sender(1, 10)())
        print("verdict", flush=True)
    except Unreachable as error:
        print("refused", error.code, flush=True)


async def heartbeat(link: GrpcLink) -> None:
    try:
        print("beat", (await link.call("Beat", b"alive", SECONDS)).decode(), flush=True)
    except Unreachable as error:
        print("beat refused", error.code, flush=True)


async def main(address: str, node_id: str, *folders: str) -> None:
    loaded = [
        Identity.load(home / "node.key", home / "node.pem", home / "ca.pem")
        for home in map(Path, folders)
    ]
    bob, carol = (Grpc(identity, "127.0.0.1:0") for identity in loaded)
    links, own = [bob.link(node_id, address) for _ in range(3)], carol.link(node_id, address)
    transfers = asyncio.gather(*(transfer(link) for link in links for _ in range(MANY // 3)))
    await asyncio.to_thread(sys.stdin.readline)
    await heartbeat(own)
    await heartbeat(links[0])
    await transfers
    for link in (*links, own):
        await link.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
