"""DECA with privacy on a language model: a block's gradient is one release a round, and without it
that is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from node.config import ExperimentConfig
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.learning.learner import Learner
from node.learning.warnings import NO_PRIVACY
from node.privacy.ledger import Ledger
from node.records.summary import Releases, read

ROUNDS = 3
"""Two in a block, one in the next."""


def config(rounds: int = ROUNDS, kind: str = "ring", **privacy: Any) -> ExperimentConfig:
    values = {
        "algorithm": {
            "name": "deca",
            "lr": 0.003,
            "steps": 2,
            "layers_per_block": 1,
            "bma": "scaled",
        },
        "topology": {"kind": kind},
        "task": {
            "name": "causal-lm",
            "model": "bytes",
            "data": "fortunes",
            "text": {"length": 16, "test_size": 5},
        },
        "train": {"rounds": rounds, "seed": 1, "evaluate_every": 0},
        "privacy": {
            "mode": "strict",
            "sigma": 1.5,
            "delta": 1e-3,
            "rate": 0.02,
            "batch": 6,
            "chunk": 16,
            **privacy,
        },
        "experiment": {"nodes": 4, "partition": "column", "column": "language"},
    }
    return ExperimentConfig(**values)  # type: ignore[arg-type]


def test_one_release_a_round_whatever_the_degree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The star's middle has three neighbors, its tips one: as many debits, the same ε."""
    ledgers: list[Ledger] = []
    in_memory = Ledger.in_memory

    def kept() -> Ledger:
        ledgers.append(in_memory())
        return ledgers[-1]

    monkeypatch.setattr(Ledger, "in_memory", kept)
    summary = in_process.simulate(config(kind="star"), tmp_path)
    assert len(ledgers) == 4
    for ledger in ledgers:
        assert (ledger.compositions, ledger.head[0]) == (ROUNDS, ROUNDS)
        assert [spent.mechanism.releases for spent in ledger.rows()] == [1]
    privacy = summary.privacy
    assert (privacy.mode, privacy.delta, privacy.sigma) == ("strict", 1e-3, 1.5)
    assert privacy.warning is None
    assert privacy.releases == Releases(made=4 * ROUNDS, planned=4 * ROUNDS)
    totals = set(privacy.epsilon.per_node.values())
    assert len(totals) == 1, "whatever the degree"
    assert 0 < privacy.epsilon.total < 3  # type: ignore[operator]
    assert privacy.epsilon.total == privacy.epsilon.link, "nobody gets another answer"


def test_noise_of_sigma_c_over_b_is_on_the_block() -> None:
    """Clipped gradients of a few examples, each C long, are next to nothing on one of so many
    parameters.
    """
    learner = learners(clip=1e-6, sigma=1.5, batch=5)["n0"]
    before = learner.algorithm.parameters.clone()
    block = learner.algorithm.block(0)  # type: ignore[attr-defined]
    g = learner.gate.within(before, block)(before[block.span].float(), 0)
    assert len(g) == block.size < learner.task.layout.size
    assert float(g.std()) == pytest.approx(1.5 * 1e-6 / 5, rel=0.02)


def learners(**privacy: Any) -> dict[str, Learner]:
    return in_process.make_learners(resolve(config(**privacy)))


def test_peers_differ_by_the_noise_and_it_is_drawn_anew_every_round() -> None:
    """Power: without noise the same questions have the same answers."""
    answers = []
    for mode in (
        {"sigma": 1.5},
        {"sigma": 1.5},
        {"mode": "none", "sigma": None},
        {"mode": "none", "sigma": None},
    ):
        learner = learners(**mode)["n1"]
        x = learner.algorithm.parameters
        block = learner.algorithm.block(0)  # type: ignore[attr-defined]
        within = learner.gate.within(x, block)
        answers.append((within(x[block.span], 0), within(x[block.span], 1)))
    assert not torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[2][0], answers[3][0])
    assert abs(float(torch.corrcoef(torch.stack(answers[0]))[0, 1])) < 0.1


@pytest.mark.long
def test_without_privacy_that_is_said_everywhere(tmp_path: Path) -> None:
    """Mode none is loud: in each node's journal and summary and in the whole run's. Mode strict has
    nothing to say.
    """
    none: dict[str, Any] = {"mode": "none", "sigma": None}
    for mode, loud in ((none, True), ({}, False)):
        folder = tmp_path / str(loud)
        summary = in_process.simulate(config(rounds=1, **mode), folder)
        warned = NO_PRIVACY if loud else None
        assert summary.privacy.warning == warned
        for home in sorted((folder / "nodes").iterdir()):
            assert read(home / "summary.json").privacy.warning == warned
            events = [
                json.loads(line) for line in (home / "journal.jsonl").read_text().splitlines()
            ]
            assert [it["text"] for it in events if it["event"] == "warning"] == (
                [warned] if loud else []
            )


def test_a_spent_budget_gives_zeros_and_no_debit() -> None:
    """The third round of two that are paid for."""
    learner = learners()["n0"]
    learner.gate.budget = 2  # type: ignore[attr-defined]
    x = learner.algorithm.parameters
    block = learner.algorithm.block(0)  # type: ignore[attr-defined]
    within = learner.gate.within(x, block)
    asked = [within(x[block.span], t) for t in range(3)]
    assert [bool(g.any()) for g in asked] == [True, True, False]
    assert learner.ledger is not None
    assert learner.ledger.compositions == 2
