"""ε_link counts what was released, not the rounds that went by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.config import ExperimentConfig
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.learning.learner import Learner
from node.privacy.accountant import Spent, epsilon_link, epsilon_rdp
from node.privacy.ledger import Ledger
from node.rounds import lockstep

ROUNDS = 12


def learners(algorithm: str = "dpdl", **privacy: Any) -> dict[str, Learner]:
    section = {"mode": "strict", "sigma": 1.0, "delta": 1e-3, "rate": 0.05, "batch": 20, **privacy}
    values = {
        "train": {"rounds": ROUNDS},
        "topology": {"kind": "full"},
        "experiment": {"nodes": 3},
        "privacy": section,
    }
    config = ExperimentConfig.model_validate({**values, "algorithm": {"name": algorithm}})
    return in_process.make_learners(resolve(config))


def play(nodes: dict[str, Learner], first: int, last: int, without: str = "") -> None:
    up = {name: it.algorithm for name, it in nodes.items() if name != without}
    lockstep.run(up, next(iter(nodes.values())).plan.neighborhoods, last, first=first)


def figures(learner: Learner) -> tuple[float, float, float, float]:
    stated, live = learner.privacy().epsilon, learner.live_epsilon(1e-3)
    assert stated.link is not None
    assert stated.total is not None
    return stated.link, stated.total, live.link, live.total


@pytest.mark.parametrize("batches", ["independent", "shared"])
@pytest.mark.parametrize(("first", "stop"), [(9, ROUNDS), (0, 3), (5, 6)])
def test_a_node_that_skipped_rounds(batches: str, first: int, stop: int) -> None:
    nodes = learners(batches=batches)
    play(nodes, 0, first, without="n1")  # it was away, and comes back
    play(nodes, first, stop)
    play(nodes, stop, ROUNDS, without="n1")
    link, total, live_link, live_total = figures(nodes["n1"])
    assert link == pytest.approx(epsilon_link(nodes["n1"].mechanism, stop - first, 1e-3))
    assert 0 < link <= total
    alone = replace(nodes["n1"].mechanism, releases=1)
    assert live_link == pytest.approx(epsilon_rdp([Spent(alone, stop - first)], 1e-3))
    assert live_link <= live_total
    stayed = figures(nodes["n0"])
    assert stayed[0] == pytest.approx(epsilon_link(nodes["n0"].mechanism, ROUNDS, 1e-3)), (
        "to n2, in every round"
    )
    assert link < stayed[0] <= stayed[1]


def test_who_released_nothing_has_spent_nothing() -> None:
    assert figures(learners()["n0"]) == (0.0, 0.0, 0.0, 0.0)


def test_a_ledger_remembers_whom_it_answered(tmp_path: Path) -> None:
    mechanism = learners()["n0"].mechanism
    for _ in range(2):
        with Ledger.open(tmp_path, "ward") as ledger:
            begun = ledger.last_round("run") + 1
            for t in range(begun, begun + 4):
                ledger.debit("run", t, "a", mechanism)
            ledger.debit("run", begun, "b", mechanism)
            ledger.debit("other", begun, "b", mechanism)
    with Ledger.open(tmp_path, "ward") as ledger:
        ledger.mark("marked", "none")
        assert [ledger.longest(run) for run in ("run", "other", "marked", "unknown")] == [
            8,
            2,
            0,
            0,
        ]


def test_who_answers_nobody_has_none() -> None:
    nodes = learners("dp-local")
    play(nodes, 0, ROUNDS)
    stated = nodes["n0"].privacy().epsilon
    assert stated.total is not None
    assert stated.link is None
