"""The end of a run: nobody lingers for a goodbye that was lost, or for a neighbor that died instead
of saying it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Cluster, over_memory, until
from node.daemon import daemon, startup
from node.records.peer_heads import NeighborLedgerHeads
from peer.session.session import Session
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


def rare(session: Session) -> Session:
    """Its heartbeats are so rare that there is one at most."""
    session.heartbeat_seconds = 600.0
    return session


@pytest.mark.usefixtures("network")
async def test_neighbors_keep_the_last_head_of_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of rounds between two heartbeats: a later run asks them."""
    monkeypatch.setattr(daemon, "Session", lambda *args, **options: rare(Session(*args, **options)))
    c = Cluster.make(tmp_path / "cluster", rounds=2)
    try:
        nodes = [c.witness(name) for name in c.homes]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes)) == [0, 0, 0]
        debits = 2 * len(nodes)
        assert [
            node.remembers(name) for node in nodes for name in c.homes if name != node.node.name
        ] == ([debits] * 6)
        kept = NeighborLedgerHeads(startup.heads_file(nodes[0].node))
        assert kept._heads == nodes[0].remembered._heads
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
