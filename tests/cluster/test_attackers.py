"""Attackers as daemons: every attack over memory and over gRPC has the bits of `simulate`, and
shows what it is.
"""

from __future__ import annotations

import asyncio
import json
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import uvloop

from kit.clusters import Cluster, events, experiment, get, over_memory
from node.algorithms.xavg import Xavg
from node.attacks import ATTACKS
from node.attacks.oblivious import Scaling
from node.experiments import run_folder
from node.experiments.in_process import simulate
from node.figures import Diagnostic
from node.records import checkpoint, summary
from peer.transport.memory import Network

CLEAR = {"algorithm": {"name": "xavg"}, "privacy": {"mode": "none", "sigma": None}}
STRICT = {"privacy": {"insecure_seed": 7}}
SETTINGS: dict[str, Any] = {
    **{
        name: {**CLEAR, "experiment": {"attack": {"name": name}}}
        for name in ATTACKS
        if name not in ("reward-hack", "free-rider")  # of fgrpo: test_reinforcement.py
    },
    "two liars in mode strict": {**STRICT, "experiment": {"attack": {"name": "alie", "nodes": 2}}},
    "said of all": {
        **CLEAR,
        "experiment": {"attack": {"name": "alie", "words": ["answer", "question", "state"]}},
    },
    "robust": {**CLEAR, "mix": {"rule": "median"}, "experiment": {"attack": {"name": "dissensus"}}},
}
CASES = [(what, ("memory", "grpc")[k % 2]) for k, what in enumerate(SETTINGS)]
CASES += [("alie", "grpc" if ("alie", "memory") in CASES else "memory")]
"""A carrier each; one attack over both."""


@pytest.mark.parametrize(("what", "carrier"), CASES)
def test_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, carrier: str
) -> None:
    """Four rounds: what a liar heard, and how its neighbors were moved, is in the later ones."""
    settings = {"kind": "full", "nodes": 4, "rounds": 4, **SETTINGS[what]}
    simulated = simulate(experiment(**settings), tmp_path / "simulated")
    if carrier == "memory":
        network = Network(seed=len(what), delay=(0.0, 0.004), duplicate=0.2)
        over_memory(monkeypatch, network)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        homes = runner.run(played(tmp_path / "cluster", **settings))
    merged = run_folder.merge(tmp_path / "cluster", homes)
    assert merged is not None
    assert merged.params_digest == simulated.params_digest
    assert (merged.attackers, merged.attack) == (simulated.attackers, simulated.attack)
    assert merged.task_metrics == simulated.task_metrics
    assert merged.consensus_distance == simulated.consensus_distance
    averages = [
        checkpoint.load_model(tmp_path / made / "model.safetensors")[1]
        for made in ("simulated", "cluster")
    ]
    assert torch.equal(*averages)


async def played(folder: Path, **settings: Any) -> dict[str, Path]:
    """A whole cluster in this process, to its end; its folders."""
    cluster = Cluster.make(folder, **settings)
    try:
        nodes = [cluster.witness(name) for name in cluster.homes]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes)) == [0] * len(nodes)
        unquiet = [
            events(home, "lost_edge", "partial_mix", "resume", "withheld")
            for home in cluster.homes.values()
        ]
        assert unquiet == [[]] * len(nodes)
        return cluster.homes
    finally:
        await cluster.end()


def test_what_an_algorithm_tells_of_its_neighbors_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it declares, by simulate and by daemons."""
    told = {"weight": {"n1": 0.25}, "shapley": {"n1": -0.5}}
    monkeypatch.setattr(Xavg, "DIAGNOSTICS", (Diagnostic("weight"), Diagnostic("shapley")))
    monkeypatch.setattr(
        Xavg,
        "diagnostics",
        lambda self: {k: v for k, v in told.items() if self.me == "n0"},
    )
    settings = {"kind": "full", "nodes": 3, "rounds": 2, **CLEAR}
    simulate(experiment(**settings), tmp_path / "simulated")
    shown: dict[str, float] = {}

    async def play() -> Path:
        cluster = Cluster.make(tmp_path / "cluster", **settings)
        try:
            nodes = {name: cluster.witness(name) for name in cluster.homes}
            async with asyncio.timeout(60):
                await asyncio.gather(*(node.task for node in nodes.values()))
            for name, diagnostic in product(("n0", "n1"), told):
                for peer in cluster.homes:
                    value = nodes[name].metrics.registry.get_sample_value(
                        "peerpoise_diagnostic", {"name": diagnostic, "peer": peer}
                    )
                    if value is not None and isfinite(value):
                        shown[f"{name} {diagnostic} {peer}"] = value
            return cluster.homes["n0"]
        finally:
            await cluster.end()

    home = asyncio.run(play())
    for place in (tmp_path / "simulated" / "nodes" / "n0", home):
        rounds = events(place, "round")
        assert [line["diagnostics"] for line in rounds] == [told, told]
    assert shown == {"n0 weight n1": 0.25, "n0 shapley n1": -0.5}


@pytest.mark.cluster
async def test_an_attacker_shows_what_it_is(cluster: Any) -> None:
    """In its own log, journal, status, metrics and summary; its neighbors know of nothing."""
    async with cluster(nodes=2, rounds=2, **CLEAR) as c:
        honest = c.witness("n1", limit=0)
        n0 = c.start("n0", "--attack", "sign-flip", "--attack-set", "factor=2.0", "--i-am-testing")
        seen = await n0.state("running")
        assert seen["insecure"] == ["attack"]
        assert any("ATTACKS its neighbors (sign-flip)" in text for text in seen["warnings"])
        assert 'peerpoise_insecure{what="attack"} 1.0' in get(f"http://{seen['metrics']}/metrics")
        assert honest.watch.insecure == []
        honest.limit = 9
        assert await n0.ended() == 0
        assert await honest.task == 0
        assert "ATTACKS its neighbors (sign-flip)" in n0.log
        assert any("ATTACKS" in event["text"] for event in n0.events("warning"))
        own = json.loads((c.homes["n0"] / "summary.json").read_text())
        assert (own["attackers"], own["attack"], own["task_metrics"]["accuracy"]["mean"]) == (
            ["n0"],
            "sign-flip",
            None,
        )
        theirs = summary.read(c.homes["n1"] / "summary.json")
        assert (theirs.attackers, theirs.attack) == ([], "")


@pytest.mark.cluster
async def test_a_daemon_is_not_made_an_attacker_by_its_file_alone(cluster: Any) -> None:
    async with cluster(nodes=2, rounds=2, **CLEAR, experiment={"attack": {"name": "zero"}}) as c:
        n0 = c.start("n0")
        assert await n0.ended() == 78
        assert "add --i-am-testing" in n0.log


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, 1e15])
@pytest.mark.parametrize("kind", ["full", "ring"])
def test_an_answer_that_is_no_gradient_breaks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, kind: str
) -> None:
    """ROSS by its loss, where one such value would be in all the Shapley values: the honest end,
    and with numbers.
    """
    monkeypatch.setattr(Scaling, "lie", lambda self, said: torch.full_like(said.truth, value))
    over_memory(monkeypatch, Network(seed=1, delay=(0.0, 0.002)))
    settings = {"kind": kind, "nodes": 4, "rounds": 5, **CLEAR, "train": {"evaluate_every": 1}}
    settings |= {"algorithm": {"name": "ross", "value": "neg_loss", "smoothing": 0.5, "lr": 0.1}}
    settings["experiment"] = {"attack": {"name": "scaling", "words": ["answer"]}}

    async def play() -> dict[str, Path]:
        cluster = Cluster.make(tmp_path / "cluster", **settings)
        try:
            nodes = [cluster.witness(name) for name in cluster.homes]
            async with asyncio.timeout(60):
                assert await asyncio.gather(*(node.task for node in nodes)) == [0] * len(nodes)
            return cluster.homes
        finally:
            await cluster.end()

    simulate(experiment(**settings), tmp_path / "simulated")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        homes = runner.run(play())
    for home in (*homes.values(), *(tmp_path / "simulated" / "nodes" / name for name in homes)):
        assert events(home, "end")[-1]["complete"]
        assert checkpoint.load_model(home / "model.safetensors")[1].isfinite().all()
        if home.name != "n0":
            assert events(home, "test")[-1]["metrics"]["loss"] < 4.0
            assert all(
                None not in line["diagnostics"]["weight"].values() for line in events(home, "round")
            )


@pytest.mark.cluster
async def test_a_private_validation_set_shows_where_the_epsilon_does(cluster: Any) -> None:
    async with cluster(
        nodes=2, rounds=2, algorithm={"name": "pdsl"}, validation={"public": False}
    ) as c:
        c.witness("n1", limit=0)
        seen = await c.start("n0").state("running")
        assert seen["insecure"] == ["validation"]
        assert 'peerpoise_insecure{what="validation"} 1.0' in get(
            f"http://{seen['metrics']}/metrics"
        )
