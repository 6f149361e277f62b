"""The same bits over memory with random jitter and over gRPC with mTLS, real learners in whole
daemons, on uvloop and asyncio, for everything that draws secretly (with a public seed), by formula,
or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kit.clusters import Cluster, events, experiment, over_memory
from kit.same_bits import SETTINGS
from node.experiments.in_process import simulate
from node.records import summary
from peer.transport.memory import Network

ONCE: dict[str, dict[str, Any]] = {
    "cga": {"algorithm": {"name": "dp-cga", "lr": 0.3}, "privacy": {"insecure_seed": 7}},
    "net-fleet": {
        "algorithm": {"name": "dp-net-fleet", "lr": 0.1, "restart": 3},
        "privacy": {"insecure_seed": 7},
    },
    "muffliato": {
        "algorithm": {"name": "muffliato", "lr": 0.3},
        "privacy": {"insecure_seed": 7},
        "task": {"data": "digits", "model": "softmax", "transform": "scattering", "whiten": 0.005},
        "validation": {"size": 40},
    },
}
"""Algorithms with arithmetic, questions to the gate or figures of the graph of their own, and
features that each host makes for itself; one way each is enough.
"""

CARRIERS = ("memory", "grpc")
PAIRS = [
    (what, kind, CARRIERS[(k + full) % 2], ("asyncio", "uvloop")[(k // 2 + full) % 2])
    for k, what in enumerate(SETTINGS)
    for full, kind in enumerate(("ring", "full"))
]
"""Every pair of a setting, a graph, a carrier and a loop, where all four together would be 40."""
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ROUNDS = 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`simulate`'s digests, made once for each setting."""
    made: dict[tuple[str, str], dict[str, str]] = {}

    def of(what: str, kind: str) -> dict[str, str]:
        if (what, kind) not in made:
            config = experiment(kind=kind, nodes=4, rounds=ROUNDS, **{**SETTINGS, **ONCE}[what])
            made[what, kind] = simulate(config, tmp_path_factory.mktemp("simulated")).params_digest
        return made[what, kind]

    return of


@pytest.mark.parametrize(("what", "kind", "carrier", "loop"), PAIRS)
def test_same_bits(
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    kind: str,
    carrier: str,
    loop: str,
) -> None:
    if carrier == "memory":
        network = Network(seed=len(what) + len(kind), delay=(0.0, 0.004), duplicate=0.2)
        over_memory(monkeypatch, network)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        found = runner.run(digests(tmp_path, kind, what))
    assert found == expected(what, kind)


@pytest.mark.parametrize("what", ONCE)
def test_same_bits_of_the_other_algorithms(expected: Any, tmp_path: Path, what: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(digests(tmp_path, "ring", what))
    assert found == expected(what, "ring")
    assert len(set(found.values())) == 4


async def digests(folder: Path, kind: str, what: str) -> dict[str, str]:
    cluster = Cluster.make(
        folder / "cluster", kind=kind, nodes=4, rounds=ROUNDS, **{**SETTINGS, **ONCE}[what]
    )
    try:
        nodes = {name: cluster.witness(name) for name in cluster.homes}
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes.values())) == [0, 0, 0, 0]
        unquiet = [
            events(home, "lost_edge", "partial_mix", "resume", "withheld")
            for home in cluster.homes.values()
        ]
        assert unquiet == [[], [], [], []]
        return {
            name: summary.digest(node.learner.algorithm.parameters) for name, node in nodes.items()
        }
    finally:
        await cluster.end()
