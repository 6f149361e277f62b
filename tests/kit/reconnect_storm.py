"""A listener and those who dial it over and over, each in a process of its own.

python -m kit.reconnect_storm listen FOLDER
    its address is a line; serves until killed
python -m kit.reconnect_storm dial FOLDER ADDRESS NODE_ID TIMES
    TIMES × LINKS new connections; how many were answered is a line
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kit.wire import Recorder
from peer.errors import Unreachable
from peer.identity.keys import Identity
from peer.transport.grpc import Grpc, GrpcLink

LINKS = 6


async def listen(own: Identity) -> None:
    print(await Grpc(own, "127.0.0.1:0").serve(Recorder.open()), flush=True)
    await asyncio.Event().wait()


async def dial(own: Identity, address: str, node_id: str, times: str) -> None:
    transport = Grpc(own, "127.0.0.1:0")
    answered = 0
    for _ in range(int(times)):
        links = [transport.link(node_id, address) for _ in range(LINKS)]
        answered += sum(await asyncio.gather(*map(hello, links)))
        for link in links:
            await link.close()
    print(answered, flush=True)


async def hello(link: GrpcLink) -> bool:
    try:
        await link.call("Handshake", b"hello", 20.0)
    except Unreachable:
        return False
    return True


if __name__ == "__main__":
    home = Path(sys.argv[2])
    identity = Identity.load(home / "node.key", home / "node.pem", home / "ca.pem")
    asyncio.run(listen(identity) if sys.argv[1] == "listen" else dial(identity, *sys.argv[3:]))
