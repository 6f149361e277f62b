"""A member whose payloads are finite lies, and a node that has diverged itself: what each costs the
others.

Daemons in this process, over gRPC on loopback; the liar is `node.attacks`, on the same wire.
"""

from __future__ import annotations

import asyncio
import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Cluster, Witness, events, experiment
from node.experiments import run_folder
from node.experiments.in_process import simulate
from node.records import checkpoint, summary
from node.rounds.bounds import Bounds
from peer.errors import Diverged

HUGE = {"name": "gaussian", "std": 3e17, "words": ["answer"]}
"""Its squares are finite in float32, so that a check for numbers lets it in."""
CLEAR: dict[str, Any] = {
    "algorithm": {"name": "d-psgd", "lr": 0.1},
    "privacy": {"mode": "none", "sigma": None},
}


def settings(attack: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "full", "nodes": 4, "rounds": 8, "experiment": {"attack": attack}, **more}


async def played(folder: Path, **how: Any) -> tuple[Cluster, list[Any]]:
    """A whole cluster to its end: what each of its daemons returned or raised."""
    cluster = Cluster.make(folder, **how)
    try:
        nodes = [cluster.witness(name) for name in cluster.homes]
        async with asyncio.timeout(90):
            return cluster, await asyncio.gather(
                *(node.task for node in nodes), return_exceptions=True
            )
    finally:
        await cluster.end()


def blamed(home: Path) -> set[str]:
    return {event["peer"] for event in events(home, "rejected", "lost_edge")}


@pytest.mark.cluster
@pytest.mark.parametrize("bounded", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_strict_answers_of_any_length_cost_only_the_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """Without bounds the honest models are as large as the lie."""
    if not bounded:
        monkeypatch.setattr(Bounds, "norm", lambda *given: inf)
    cluster, codes = await played(tmp_path, **settings(HUGE))
    honest = {name: home for name, home in cluster.homes.items() if name != "n0"}
    assert codes == [0] * 4
    models = [checkpoint.load_model(home / "model.safetensors")[1] for home in honest.values()]
    if not bounded:
        assert all(float(x.norm()) > 1e15 for x in models), "power"
        return
    assert [blamed(home) for home in honest.values()] == [{"n0"}] * 3
    for home in honest.values():
        assert {event["code"] for event in events(home, "rejected")} == {"CODE_MALFORMED"}
        it = summary.read(home / "summary.json")
        assert it.complete
        assert not it.diverged
    assert all(float(x.norm()) < 100 for x in models)


def test_strict_answers_of_any_length_cost_only_the_liar_in_a_simulation_too(
    tmp_path: Path,
) -> None:
    how = {"train": {"rounds": 30, "seed": 1}, "privacy": {"insecure_seed": 5}}
    alone = simulate(experiment(**settings({**HUGE, "std": 0.0}, **how)), tmp_path / "zeros")
    found = simulate(experiment(**settings(HUGE, **how)), tmp_path / "huge")
    assert found.complete
    assert not found.diverged
    here, there = (run.task_metrics["accuracy"].mean for run in (found, alone))
    assert here is not None
    assert there is not None
    assert here > there - 0.05


@pytest.mark.cluster
async def test_who_diverged_says_so_and_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n0's parameters leap beyond the bounds after round 2. It leaves with its last good
    checkpoint; the others end.
    """

    def completed(self: Witness, t: int) -> None:
        self.finished = t
        if self.node.name == "n0" and t == 3:
            self.learner.algorithm.state.x.mul_(1e9)

    monkeypatch.setattr(Witness, "_completed", completed)
    cluster, ends = await played(
        tmp_path, **settings(**CLEAR, train={"checkpoint_every": 3, "rounds": 8})
    )
    assert isinstance(ends[0], Diverged)
    assert ends[1:] == [0, 0, 0]
    home = cluster.homes["n0"]
    assert events(home, "end")[-1] | {"time": 0, "wall_seconds": 0, "params_digest": 0} == {
        "event": "end",
        "time": 0,
        "reason": "diverged",
        "exit_code": 4,
        "wall_seconds": 0,
        "complete": False,
        "params_digest": 0,
        "metrics": {},
        "epsilon": None,
    }
    assert [event["round"] for event in events(home, "checkpoint")] == [2]
    assert all(events(it, "rejected") == [] for it in cluster.homes.values())
    assert all(blamed(it) <= {"n0"} for it in cluster.homes.values())
    merged = run_folder.merge(tmp_path, cluster.homes)
    assert merged is not None
    assert (merged.diverged, merged.complete) == (["n0"], False)
    assert [*merged.task_metrics["accuracy"].per_node] == ["n1", "n2", "n3"]


@pytest.mark.cluster
async def test_a_daemon_that_diverges_ends_with_its_code_and_one_sentence(tmp_path: Path) -> None:
    c = Cluster.make(
        tmp_path, nodes=2, rounds=30, **{**CLEAR, "algorithm": {"name": "d-psgd", "lr": 1e30}}
    )
    try:
        both = [c.start(name) for name in c.homes]
        assert [await it.ended() for it in both] == [4, 4]
        for it in both:
            assert it.log.count("This node has diverged") == 1
            assert "smaller algorithm.lr" in it.log
            assert not it.events("rejected")
            assert json.loads((it.home / "summary.json").read_text())["complete"] is False
    finally:
        await c.end()


def test_a_simulation_that_diverged_is_not_complete(tmp_path: Path) -> None:
    found = simulate(
        experiment(**settings(**{**CLEAR, "algorithm": {"name": "d-psgd", "lr": 1e30}})), tmp_path
    )
    assert found.diverged == ["n0", "n1", "n2", "n3"]
    assert not found.complete
    assert not any(event["complete"] for event in events(tmp_path / "nodes" / "n0", "end"))


@pytest.mark.cluster
async def test_an_absurd_question_is_left_without_an_answer_and_nobody_is_blamed(
    tmp_path: Path,
) -> None:
    """In mode none the gradient at such a model is no number: it is the asker's fault, not this
    node's.
    """
    attack = {"name": "scaling", "factor": 1e39, "words": ["question"]}
    how = {**CLEAR, "algorithm": {"name": "xavg", "lr": 0.1}}
    cluster, codes = await played(tmp_path, **settings(attack, **how))
    assert codes == [0] * 4
    for name, home in cluster.homes.items():
        assert blamed(home) == set()
        assert {event["recipient"] for event in events(home, "withheld")} == ({"n0"} - {name})
        assert events(home, "end")[-1]["complete"]


@pytest.mark.cluster
async def test_a_state_far_from_the_others_is_reported(tmp_path: Path) -> None:
    attack = {"name": "gaussian", "std": 100.0, "words": ["state"], "of": "value"}
    cluster, codes = await played(tmp_path, **settings(attack, **CLEAR, mix={"rule": "median"}))
    assert codes == [0] * 4
    for name, home in cluster.homes.items():
        told = events(home, "outlier")  # not in round 0, when all honest states are the same
        assert {event["peer"] for event in told} == ({"n0"} - {name})
        assert all(event["times"] > 10 for event in told)
        seen = cluster.witnesses[name].metrics.registry.get_sample_value(
            "peerpoise_outliers_total", {"peer": "n0"}
        )
        assert (seen or 0) == len(told) == (0 if name == "n0" else 7)
