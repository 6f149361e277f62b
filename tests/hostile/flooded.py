"""What the tests of floods and removals share: a cluster of daemons, and clients that attack one of
them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from harness import Cluster, Process, clustered

ROOT = Path(__file__).parents[2]


def cluster(folder: Path, **settings: Any) -> AbstractAsyncContextManager[Cluster]:
    return clustered(folder / "cluster", **settings)


@asynccontextmanager
async def attack(script: str, *words: str) -> AsyncIterator[list[str]]:
    """A client of this folder, in a process of its own, from its first line on; yields the lines it
    has said.
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=subprocess.PIPE)
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
