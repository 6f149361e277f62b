"""What the tests of floods and removals share: a cluster of daemons, and clients that attack one of
them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from kit import TESTS, script
from kit.clusters import Cluster, Process, clustered


def cluster(folder: Path, **settings: Any) -> AbstractAsyncContextManager[Cluster]:
    return clustered(folder / "cluster", **settings)


@asynccontextmanager
async def attack(program: str, *words: str) -> AsyncIterator[list[str]]:
    """A hostile client of this package, in a process of its own, from its first line on; yields the
    lines it has said.
    """
    process = await asyncio.create_subprocess_exec(
        *script(program, *words),
        cwd=TESTS,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = [(await process.stdout.readline()).decode().strip()]
    listening = asyncio.ensure_future(_listen(process.stdout, said))
    try:
        yield said
    finally:
        process.kill()
        await process.wait()
        await listening


async def _listen(out: asyncio.StreamReader, said: list[str]) -> None:
    while line := await out.readline():
        said.append(line.decode().strip())


def memory(process: Process) -> float:
    """MiB that it holds."""
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def state_of(process: Process, peer: str) -> str:
    """What it says of a neighbor."""
    seen = process.status()
    return next((it["state"] for it in seen["neighbors"] if it["name"] == peer), "") if seen else ""


def warns(process: Process, words: str) -> bool:
    seen = process.status()
    return seen is not None and any(words in text for text in seen["warnings"])
