"""FGRPO over real daemons: the bits of the simulation, and kill -9 while answers are drawn."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Process
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
    """Its chain of commitments goes on from its checkpoint, and it is audited again."""
    endless = {**SETTINGS, "rounds": 100_000, "sync": {"deadline_s": 20.0}}
    async with cluster(**endless) as c:
        others = [c.start(name) for name in ("n0", "n2")]
        first = c.start("n1", failpoints="round_start=kill@4")
        assert await first.ended(200) == -signal.SIGKILL
        last = first.events("round")[-1]["round"]
        again = c.start("n1")
        for process in others:
            await process.until(lambda process=process: heard_after(process, last + 1), 200)
        for process in (*others, again):
            process.popen.terminate()
            assert await process.ended() == 0, process.log
        for process in others:
            rounds = process.events("round")
            assert [event["round"] for event in rounds] == list(range(len(rounds)))
            for event in rounds:
                assert not any(event["diagnostics"].get("convicted", {}).values())


def heard_after(process: Process, t: int) -> bool:
    """Has it heard and judged n1 in three rounds after t?"""
    judged: list[int] = [
        event["round"]
        for event in process.events("round")
        if "n1" in event["diagnostics"].get("convicted", {})
    ]
    return sum(each > t for each in judged) >= 3
