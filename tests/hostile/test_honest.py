"""Nobody honest is refused, cut, masked or accused: jitter, pauses shorter than a deadline, a
restart.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from kit import LONG, clock
from kit.mesh import Node, alive, mesh
from kit.toys import Toy, cluster
from node.config import SyncSection
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity
from peer.session.interfaces import SessionObserver
from peer.transport.memory import Memory, Network

ROUNDS = 1000 if LONG else 20
GRAPHS = {"ring": 4, "full": 4, "torus": 9}
pytestmark = pytest.mark.timeout(1800)
DEADLINE = 4.0
PAUSE = DEADLINE / 16
"""Seconds for which a node stands still now and then."""


class Faults(SessionObserver):
    """Whatever a session holds against a neighbor."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []

    def rejected(self, *what: Any) -> None:
        self.found.append(("rejected", *what))

    def contradicted(self, *what: Any) -> None:
        self.found.append(("contradicted", *what))


class Pausing(Toy):
    """Stands still in one round of twenty."""

    __slots__ = ()

    def __call__(self, x: Any, t: int, to: str) -> Any:
        if random.Random(f"{self._me} {t} {to}").random() < 1 / 20:
            clock.sleep(PAUSE)
        return super().__call__(x, t, to)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("people")
    ca = CertificateAuthority.create(folder / "ca")
    return {name: ca.enrol(folder / name) for name in (f"n{k}" for k in range(9))}


def together(
    people: dict[str, Identity], graph: str, network: Network, **more: Any
) -> dict[str, Node]:
    nodes, neighborhoods = cluster(("dpdl", {"lr": 0.02}), graph, GRAPHS[graph], gate=Pausing)
    ids = {name: people[name].id for name in neighborhoods}
    transports = {name: Memory(network, ids[name]) for name in neighborhoods}
    sync = SyncSection(deadline_s=DEADLINE)
    found = mesh(
        nodes,
        neighborhoods,
        ROUNDS,
        transports=transports,
        ids=ids,
        identities=people,
        sync=sync,
        **more,
    )
    for node in found.values():
        node.session.table.observer = Faults()
    return found


def blameless(node: Node) -> bool:
    observer = node.session.table.observer
    assert isinstance(observer, Faults)
    return observer.found == []


@pytest.mark.virtual_time
@pytest.mark.parametrize("graph", GRAPHS)
async def test_pauses_and_delays(people: dict[str, Identity], graph: str) -> None:
    nodes = together(people, graph, Network(1, delay=(0.0, 0.002), drop=0.01, duplicate=0.01))
    async with alive(nodes) as tasks:
        await asyncio.gather(*tasks.values())
    for node in nodes.values():
        assert node.notes.rounds == list(range(ROUNDS))
        assert (node.notes.losses, node.notes.drops, node.notes.skips) == ([], [], [])
        assert all(
            set(weight) == set(node.neighborhood.weight) for weight in node.notes.weights.values()
        )
        assert blameless(node)


@pytest.mark.virtual_time
@pytest.mark.parametrize("graph", ["ring", "full"])
async def test_a_restart(people: dict[str, Identity], graph: str) -> None:
    """Who was restarted is taken back by everybody; nobody else is lost, and nobody accused."""
    network = Network(2, delay=(0.0, 0.002))
    nodes = together(people, graph, network)
    async with alive(nodes) as tasks:
        while len(nodes["n1"].notes.rounds) < ROUNDS // 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        reached = nodes["n1"].notes.rounds[-1]
        tasks["n1"].cancel()
        await asyncio.gather(tasks["n1"], return_exceptions=True)
        again = together(people, graph, network, incarnation=2)["n1"]
        again.book.table = nodes["n0"].book.table
        await asyncio.gather(
            again.live(first=reached + 1), *(task for name, task in tasks.items() if name != "n1")
        )
    others = [node for name, node in nodes.items() if name != "n1"]
    for node in others:
        assert {peer for _, peer in node.notes.losses} <= {"n1"}
        assert node.notes.rounds == list(range(ROUNDS))
        assert blameless(node)
        if "n1" in node.neighborhood.neighbors:
            assert "n1" in node.notes.weights[ROUNDS - 1]
    assert {peer for _, peer in again.notes.losses} == set()
    assert blameless(again)
