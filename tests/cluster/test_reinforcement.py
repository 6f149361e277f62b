"""FGRPO over real daemons: the bits of the simulation, and kill -9 while answers are drawn."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from node.experiments.in_process import simulate

pytest.importorskip("transformers")
ROUNDS = 5
SETTINGS: dict[str, Any] = {
    "nodes": 3,
    "kind": "full",
    "rounds": ROUNDS,
    "algorithm": {
        "name": "fgrpo",
        "lr": 1e-3,
        "questions": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "local_steps": 1,
        "warmup": {"rounds": 1},
        "audit": {"questions": 4},
    },
    "task": {
        "name": "reasoning",
        "model": "bytes",
        "data": "questions",
        "text": {"length": 32, "test_size": 9, "embeddings": True},
        "reasoning": {"families": ["largest", "reverse", "sort"]},
    },
    "privacy": {"mode": "none", "sigma": None, "insecure_seed": 7, "batch": 4},
    "experiment": {"partition": "column", "column": "family"},
}
"""The seed makes the auditors' questions known, and a run repeatable."""


@pytest.mark.cluster
@pytest.mark.timeout(300)
async def test_daemons_give_the_bits_of_the_simulation(cluster: Any, tmp_path: Path) -> None:
    async with cluster(**SETTINGS) as c:
        processes = {name: c.start(name) for name in c.homes}
        expected = simulate(c.config, tmp_path / "simulated")
        for name, process in processes.items():
            assert await process.ended(200) == 0, process.log
            summary = json.loads((c.homes[name] / "summary.json").read_text())
            assert summary["params_digest"] == {name: expected.params_digest[name]}
            assert summary["complete"]
            assert process.events("lost_edge", "partial_mix") == []
            last = process.events("round")[-1]["diagnostics"]
            assert set(last["convicted"]) == set(c.homes) - {name}
            assert not any(last["convicted"].values())
            assert last["audit_tokens"] > 0
            assert last["mismatch"] < 1e-4


@pytest.mark.cluster
@pytest.mark.timeout(300)
async def test_killed_while_it_answers_it_returns_and_nobody_is_convicted(cluster: Any) -> None:
    """Its chain of commitments goes on from its checkpoint."""
    async with cluster(**SETTINGS, sync={"deadline_s": 20.0}) as c:
        others = [c.start(name) for name in ("n0", "n2")]
        first = c.start("n1", failpoints="round_start=kill@4")
        assert await first.ended(200) == -signal.SIGKILL
        again = c.start("n1")
        for process in (*others, again):
            assert await process.ended(200) == 0, process.log
        for process in others:
            rounds = process.events("round")
            assert [event["round"] for event in rounds] == list(range(ROUNDS))
            for event in rounds:
                assert not any(event["diagnostics"].get("convicted", {}).values())
        assert again.events("round")[-1]["round"] == ROUNDS - 1
