"""A second run that starts where the first ended: the same bits on every carrier, and real hosts
whose keys never moved, with one more site, and with memories of the first run's ledgers.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.clusters import Cluster, Process, events, experiment, over_memory
from kit.same_bits import SETTINGS
from node.cli.ledger import count
from node.config import ExperimentConfig, RunConfig, load
from node.experiments import continued, hosts, local_cluster
from node.experiments.in_process import simulate
from node.experiments.run_folder import model_file
from node.learning import start
from node.records import checkpoint, summary
from peer.identity import requests
from peer.identity.roster import Roster
from peer.transport.memory import Network

ROUNDS = 3


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a first run."""
    folder = tmp_path_factory.mktemp("first")
    simulate(experiment(nodes=3, rounds=ROUNDS, **SETTINGS["strict"]), folder)
    return folder / "model.safetensors"


def second(model: Path | None) -> ExperimentConfig:
    train = {"start": model, "rounds": ROUNDS}
    return experiment(nodes=3, train=train, **SETTINGS["strict"])


@pytest.mark.parametrize("carrier", ["memory", "grpc"])
def test_daemons_and_simulate_start_from_the_same_model(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrier: str
) -> None:
    if carrier == "memory":
        over_memory(monkeypatch, Network(seed=3, delay=(0.0, 0.004), duplicate=0.2))
    expected = simulate(second(first), tmp_path / "simulated").params_digest
    assert asyncio.run(digests(tmp_path, first)) == expected
    assert simulate(second(None), tmp_path / "anew").params_digest != expected


async def digests(folder: Path, model: Path) -> dict[str, str]:
    train = {"start": model, "rounds": ROUNDS}
    cluster = Cluster.make(folder / "cluster", nodes=3, train=train, **SETTINGS["strict"])
    try:
        nodes = {name: cluster.witness(name) for name in cluster.homes}
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(node.task for node in nodes.values())) == [0, 0, 0]
        return {
            name: summary.digest(node.learner.algorithm.parameters) for name, node in nodes.items()
        }
    finally:
        await cluster.end()


def test_every_parameter_is_the_files(first: Path) -> None:
    layout, x = checkpoint.load_model(first)
    run = second(first).run_config
    assert torch.equal(start.parameters(run, layout, torch.float32), x)
    assert start.parameters(run, layout, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.cluster
@pytest.mark.long
async def test_one_more_site_joins_the_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are made on four hosts and nowhere else; the second run has the first three's ids. One
    has lost its ledger between the runs, which the neighbors say; in a third run, once it has
    counted the first as spent, they are content.
    """
    for name in "abcd":
        key = tmp_path / f"state-{name}" / "peerpoise" / "node.key"
        requests.create(key, tmp_path / f"{name}.csr")
    x = np.full((40, 8, 8), 0.5, np.float32)
    np.savez(tmp_path / "ward.npz", x=x, y=np.arange(40) % 10)
    config = experiment(rounds=2, task={"data": "own"})
    with local_cluster._reserved(4) as ports:
        addresses = {name: f"127.0.0.1:{port}" for name, port in zip("abcd", ports, strict=True)}
        await both_runs(config, addresses, tmp_path, monkeypatch)
    assert keys_under(tmp_path) == {f"state-{name}" for name in "abcd"} | {"federation"}


def keys_under(folder: Path) -> set[str]:
    """Which of the folders have a private key: each host's own state, and the CA's."""
    places = [path.parent for path in folder.glob("**/*.key")]
    return {place.name if place.name == "federation" else place.parent.name for place in places}


async def both_runs(
    config: ExperimentConfig,
    addresses: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = pack(config, tmp_path, addresses, "abc", tmp_path / "one")
    await finished(tmp_path, tmp_path / "one", "abc", monkeypatch)

    shutil.rmtree(tmp_path / "state-a" / "peerpoise" / "ledger")
    folder = tmp_path / "one" / "a" / "state"
    following = continued.write(
        folder, model_file(folder, None, True), tmp_path / "next.toml", ["train.rounds=3"]
    )
    assert following.train.rounds == 3
    following = load(ExperimentConfig, [tmp_path / "next.toml"], environ={})
    federation = tmp_path / "one" / "federation"
    roster = pack(following, tmp_path, addresses, "abcd", tmp_path / "two", federation)
    assert [roster.by_name[name].id for name in "abc"] == [m.id for m in first.members]
    await finished(tmp_path, tmp_path / "two", "abcd", monkeypatch)
    texts = [warnings(tmp_path / "two" / name) for name in "abcd"]
    assert any("A neighbor remembers more debits" in text for text in texts[0])
    assert texts[1:] == [[], [], []]

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-a"))
    counted = count(tmp_path / "one" / "a" / "node.toml", yes=True)
    assert (counted["compositions"], counted["missing"]) == (2 * 3, 0)
    pack(following, tmp_path, addresses, "abc", tmp_path / "three", federation)
    await finished(tmp_path, tmp_path / "three", "abc", monkeypatch)
    assert [warnings(tmp_path / "three" / name) for name in "abc"] == [[], [], []]


def warnings(home: Path) -> list[str]:
    return [it["text"] for it in events(home / "state", "warning")]


def pack(
    config: ExperimentConfig,
    folder: Path,
    addresses: dict[str, str],
    names: Sequence[str],
    out: Path,
    federation: Path | None = None,
) -> Roster:
    given = [f"{name}={addresses[name]}" for name in names]
    asked = [f"{name}={folder / f'{name}.csr'}" for name in names]
    data = [f"{name}=ward:{folder / 'ward.npz'}" for name in names]
    hosts.pack(config, given, data, out, requested=asked, federation=federation)
    return Roster.load(out / "roster.json", load(RunConfig, [out / "run.toml"]).run.federation)


async def finished(
    folder: Path, out: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every host runs its daemon to the end, from nothing but its folder and its own state."""
    run, daemons = load(RunConfig, [out / "run.toml"], environ={}), []
    try:
        for name in names:
            monkeypatch.setenv("XDG_STATE_HOME", str(folder / f"state-{name}"))
            unlimited = ("--set", "budget.epsilon=unlimited")
            daemons.append(Process.start(out / name, run, *unlimited))
        for daemon in daemons:
            assert await daemon.ended() == 0, daemon.log
    finally:
        for daemon in daemons:
            daemon.kill()
    for name in names:
        assert json.loads((out / name / "state" / "summary.json").read_text())["complete"]
