"""Somebody without a certificate, in a process of its own: `python -m kit.stranger ADDRESS COUNT`.

Opens COUNT TCP connections to a daemon that the test started, says nothing on any, and opens each
again when it is cut. A line a second says how many are open.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time


class Silent(asyncio.Protocol):
    """Holds a place in `opened` as long as it is connected."""

    opened: set[Silent] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.opened.add(self)
        self.gone = asyncio.get_running_loop().create_future()

    def connection_lost(self, error: Exception | None) -> None:
        self.opened.discard(self)
        self.gone.set_result(None)


async def hold(host: str, port: int) -> None:
    while True:
        try:
            _, silent = await asyncio.get_running_loop().create_connection(Silent, host, port)
            await silent.gone
        except OSError:
            await asyncio.sleep(0.01)


async def main(address: str, count: str) -> None:
    host, _, port = address.rpartition(":")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with asyncio.TaskGroup() as group:
        for _ in range(int(count)):
            group.create_task(hold(host, int(port)))
        while True:
            await asyncio.sleep(1.0)
            print(f"{time.monotonic():.0f}: {len(Silent.opened)} open", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
