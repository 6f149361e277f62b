"""A run by persons gives the same bits in one process, over memory and over gRPC, and goes on from
a checkpoint as if nothing had been.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.clusters import Cluster, experiment, over_memory
from node.experiments import in_process
from node.experiments.in_process import simulate
from node.experiments.resolve import resolve
from node.learning.learner import Learner
from node.records import checkpoint, summary
from node.rounds import lockstep
from peer.transport.memory import Network

ROUNDS, CUT = 4, 2
MODES: dict[str, dict[str, Any]] = {
    "strict": {"privacy": {"insecure_seed": 7}},
    "none": {"algorithm": {"name": "d-psgd"}, "privacy": {"mode": "none", "sigma": None}},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 60 writers, most of whom wrote more than are drawn at a time."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    x, y = rng.random((300, 1, 4, 4), np.float32), rng.integers(0, 3, 300)
    np.savez(path, x=x, y=y, writer=rng.integers(0, 60, 300))
    return path


def settings(path: Path, mode: str) -> dict[str, Any]:
    task = {"data": "file", "path": path, "classes": 3, "unit": "writer", "rows_per_unit": 3}
    return {"kind": "ring", "nodes": 3, "rounds": ROUNDS, "task": task, **MODES[mode]}


async def digests(folder: Path, path: Path, mode: str) -> dict[str, str]:
    cluster = Cluster.make(folder / "cluster", **settings(path, mode))
    try:
        nodes = {name: cluster.witness(name) for name in cluster.homes}
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes.values())) == [0, 0, 0]
        return {n: summary.digest(it.learner.algorithm.parameters) for n, it in nodes.items()}
    finally:
        await cluster.end()


@pytest.mark.parametrize("carrier", ["memory", "grpc"])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_by_persons(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, mode: str, carrier: str
) -> None:
    if carrier == "memory":
        over_memory(monkeypatch, Network(seed=3, delay=(0.0, 0.004), duplicate=0.2))
    expected = simulate(experiment(**settings(digits, mode)), tmp_path / "simulated")
    assert asyncio.run(digests(tmp_path, digits, mode)) == expected.params_digest
    by_rows = settings(digits, mode)
    by_rows["task"] = {**by_rows["task"], "unit": ""}
    other = simulate(experiment(**by_rows), tmp_path / "by rows")  # power
    assert not {*other.params_digest.values()} & {*expected.params_digest.values()}


def play(nodes: dict[str, Learner], rounds: int, first: int = 0) -> None:
    neighborhoods = next(iter(nodes.values())).plan.neighborhoods
    algorithms = {name: it.algorithm for name, it in nodes.items()}
    lockstep.run(algorithms, neighborhoods, rounds, first=first)


@pytest.mark.parametrize("mode", MODES)
def test_it_goes_on_in_mid_run_bit_for_bit(tmp_path: Path, digits: Path, mode: str) -> None:
    config = experiment(**settings(digits, mode))
    through, first, again = (in_process.make_learners(resolve(config)) for _ in range(3))
    play(through, ROUNDS)
    play(first, CUT)
    for name, learner in first.items():
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, CUT - 1, learner.algorithm.state)
        loaded = checkpoint.latest(tmp_path / name, type(learner.algorithm.state))
        assert loaded is not None
        again[name].algorithm.state = loaded.state
    play(again, ROUNDS, first=CUT)
    for name, learner in through.items():
        assert again[name].algorithm.parameters.equal(learner.algorithm.parameters)


def test_what_a_run_says_of_itself(tmp_path: Path, digits: Path) -> None:
    """The unit's name beside every ε; nobody's own name anywhere."""
    made = simulate(experiment(**settings(digits, "strict")), tmp_path)
    whom = "add/remove all rows of one writer"
    assert (made.privacy.adjacency, made.privacy.unit) == (whom, "writer")
    assert whom in summary.conditions(made.privacy)
    assert "add/remove one example" not in (tmp_path / "summary.json").read_text()
    for journal in tmp_path.glob("nodes/*/journal.jsonl"):
        text = journal.read_text()
        assert whom in text
        assert "one example" not in text
