"""FGRPO over real daemons: the bits of the simulation, and kill -9 while answers are drawn."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from kit import LONG
from kit.clusters import Process
from kit.generation_server import serving
from kit.own_families import sums
from node.data import child
from node.experiments.in_process import simulate
from node.llm.models import tiny_llama

pytest.importorskip("transformers")
ROUNDS = 4
KEY = "sk-of-nobody"
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


CLAIMS = {"nodes": ["n2"], "claim": 1e3, "claim_growth": 2.0}
FLIP = {"name": "sign-flip", "words": ["state"], "vectors": [0], "since": 1, "factor": 0.5}
ATTACKS: list[dict[str, Any]] = [{"name": "free-rider", "update": "noise"}]
if LONG:
    ATTACKS += [FLIP, {"name": "free-rider"}, {"name": "reward-hack", "pays": "wrong"}]


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda each: "-".join(map(str, each.values())))
async def test_attackers_over_the_wire_give_the_bits_of_the_simulation(
    cluster: Any, tmp_path: Path, attack: dict[str, Any]
) -> None:
    """They commit themselves to what they send, and to what they claim."""
    experiment = {**SETTINGS["experiment"], "attack": {**attack, **CLAIMS}}
    async with cluster(**{**SETTINGS, "experiment": experiment}) as c:
        expected = simulate(c.config, tmp_path / "simulated")
        nodes = {name: c.witness(name) for name in c.homes}
        async with asyncio.timeout(250):
            assert await asyncio.gather(*(node.task for node in nodes.values())) == [0, 0, 0]
        for name, node in nodes.items():
            summary = json.loads((c.homes[name] / "summary.json").read_text())
            assert summary["params_digest"] == {name: expected.params_digest[name]}
            assert summary["attackers"] == (["n2"] if name == "n2" else [])
            if name != "n2":
                observations, mean, _ = node.learner.algorithm.state.baselines["n2"]
                assert observations == ROUNDS - 1, "its chain holds"
                assert mean > 1e3


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_daemons_learn_and_audit_a_family_of_somebodys_own(
    cluster: Any, tmp_path: Path
) -> None:
    """Each has a process of its code, which is gone with the daemon."""
    family = sums(tmp_path)
    task = SETTINGS["task"] | {"reasoning": {"families": [family, "sort"]}}
    algorithm = {"warmup": {}, "audit": {"questions": 2, "score": "sampled"}}
    own = {"nodes": 2, "rounds": 3, "task": task, "algorithm": SETTINGS["algorithm"] | algorithm}
    async with cluster(**{**SETTINGS, **own}) as c:
        processes = {name: c.start(name) for name in c.homes}
        expected = simulate(c.config, tmp_path / "simulated")
        for name, process in processes.items():
            assert await process.ended(200) == 0, process.log
            summary = json.loads((c.homes[name] / "summary.json").read_text())
            assert summary["complete"]
            assert summary["params_digest"] == {name: expected.params_digest[name]}
            rounds = process.events("round")
            assert len(rounds) == 3
            assert all(each["diagnostics"]["audit_tokens"] > 0 for each in rounds)
            assert not any(each["diagnostics"]["scorer_failures"] for each in rounds)
    child.end_all()  # the simulation's
    assert not any(f"{tmp_path / 'sums.py'}\0" in command for command in commands())


def commands() -> Iterator[str]:
    """Of all processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield (process / "cmdline").read_bytes().decode(errors="replace")


@pytest.mark.cluster
@pytest.mark.timeout(300)
async def test_killed_while_it_answers_it_returns_and_nobody_is_convicted(cluster: Any) -> None:
    """In the middle of an answer of its second round. Its chain of commitments goes on from its
    checkpoint, and it is audited again."""
    endless = {**SETTINGS, "rounds": 100_000, "sync": {"deadline_s": 20.0}}
    async with cluster(**endless) as c:
        others = [c.start(name) for name in ("n0", "n2")]
        first = c.start("n1", failpoints="token_drawn=kill@9")
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


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(400)
async def test_a_generation_server_that_dies_ends_its_node_which_resumes_later(
    cluster: Any, tmp_path: Path
) -> None:
    """n0 has a server with the weights that the run begins with, and its key, which nothing shows."""
    weights = dict(tiny_llama(torch.float32, None, 1).named_parameters())
    weights.pop("lm_head.weight", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    families = {"reasoning": {"families": ["largest", "sort"]}}
    settings = {**SETTINGS, "nodes": 2, "rounds": 1000, "task": SETTINGS["task"] | families}
    async with cluster(**settings) as c:
        (c.homes["n0"] / "server.key").write_text(KEY)
        (c.homes["n0"] / "server.key").chmod(0o600)
        section = f'[generator]\nurl = "http://127.0.0.1:{port}/vllm/none/1.0/v1"\n'
        section += 'key = "server.key"\n'
        with (c.homes["n0"] / "node.toml").open("a", encoding="utf-8") as file:
            file.write(f"\n{section}")
        c.start("n1")
        # Two questions a round: it dies in the third after the warm-up.
        with serving(tmp_path, weights, "--key", KEY, "--die-after", "5", port=port):
            first = c.start("n0")
            assert await first.ended(200) == os.EX_TEMPFAIL, first.log
        assert [event["round"] for event in first.events("round")] == [0, 1, 2]
        assert f"The generation server http://127.0.0.1:{port}/" in first.log
        assert "Traceback" not in first.log
        with serving(tmp_path, weights, "--key", KEY, port=port):
            again = c.start("n0")
            await again.until(lambda: again.reached(4), 150)
        (c.homes["n0"] / "server.key").unlink()
        written = [file.read_bytes() for file in c.homes["n0"].rglob("*") if file.is_file()]
        assert not any(KEY.encode() in each for each in (*written, first.log.encode()))
        assert again.events("resume")[-1]["checkpoint"] == 2
        assert again.events("round")[-1]["diagnostics"]["completion_length"] > 0
