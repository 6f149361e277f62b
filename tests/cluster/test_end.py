"""The end of a run: nobody lingers for a goodbye that was lost, or for a neighbor that died instead
of saying it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Cluster, over_memory, until
from node.daemon import daemon
from peer.transport.memory import Network


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    over_memory(monkeypatch, made)
    monkeypatch.setattr(daemon, "LINGER_SECONDS", 600.0)
    return made


def make(folder: Path) -> Any:
    return Cluster.make(
        folder / "cluster",
        rounds=2,
        privacy={"mode": "none", "sigma": None},
        sync={"deadline_s": 2.0},
    )


async def test_a_lost_goodbye_is_said_again(tmp_path: Path, network: Network) -> None:
    network.drop = 0.3
    c = make(tmp_path)
    try:
        nodes = [c.witness(name) for name in c.homes]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes)) == [0, 0, 0]
    finally:
        await c.end()


async def test_who_died_is_not_lingered_for(tmp_path: Path, network: Network) -> None:
    c = make(tmp_path)
    try:
        nodes = [c.witness(name) for name in ("n0", "n1")]
        slow = c.witness("n2", limit=1)
        await until(lambda: all(node.watch.state == "lingering" for node in nodes))
        network.kill(slow.identity.id)
        async with asyncio.timeout(30):
            assert await asyncio.gather(*(node.task for node in nodes)) == [0, 0]
    finally:
        await c.end()
