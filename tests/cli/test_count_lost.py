"""After a ledger was set back, its owner counts the run as wholly spent, and releases go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kit.command import Call
from node.cli.ledger import _mechanism
from node.config import NodeConfig, RunConfig, load
from node.daemon.bootstrap import resolve_paths
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.records.journal import read

RUN = ("task.data=own", "start.timeout_s=0.2", "privacy.epsilon=", "privacy.sigma=2.0")
PORTS = ("listen.address=127.0.0.1:0", "metrics.listen=", "budget.ledger_dir=ledger")


def options(*settings: str) -> list[str]:
    return [word for it in settings for word in ("--set", it)]


@pytest.fixture
def home(peerpoise: Call, experiment: Path, tmp_path: Path) -> Path:
    """A federation of one, whose two rounds are over, and whose database is that of before."""
    host = ("--host", "a=127.0.0.1:7443", "--data", "a=ward:data.npz")
    packed = peerpoise("pack", experiment, *host, "--out", tmp_path / "out", *options(*RUN))
    assert packed.code == 0, packed.err
    home = tmp_path / "out" / "a"
    text = (home / "node.toml").read_text(encoding="utf-8")
    budget = '[budget]\nledger_dir = "ledger"'
    (home / "node.toml").write_text(text.replace("[budget]", budget), encoding="utf-8")
    np.savez(home / "data.npz", x=np.full((20, 8, 8), 0.5, np.float32), y=np.arange(20) % 10)
    with Ledger.open(home / "ledger", "ward") as ledger:
        ledger.debit("earlier", 0, "b", Mechanism(sigma=50.0, rate=0.01))
    shutil.copy(home / "ledger" / "ward.sqlite", tmp_path / "yesterday")
    assert run(peerpoise, home)[0] == 0
    shutil.copy(tmp_path / "yesterday", home / "ledger" / "ward.sqlite")
    shutil.rmtree(home / "state")
    return home


def run(peerpoise: Call, home: Path, *settings: str) -> tuple[int, str]:
    result = peerpoise("run", "--config", home / "node.toml", *options(*PORTS, *settings))
    return result.code, result.err


def test_count_lost(peerpoise: Call, home: Path) -> None:
    code, text = run(peerpoise, home)
    assert code == 73
    assert "peerpoise ledger count-lost" in text

    command = ("ledger", "count-lost", "--config", home / "node.toml")
    shown = json.loads(peerpoise(*command, "--json").out)
    assert (shown["counted"], shown["missing"]) == (False, 2)
    assert run(peerpoise, home)[0] == 73, "it was only shown"
    counted = json.loads(peerpoise(*command, "--yes", "--json").out)
    assert (counted["counted"], counted["missing"], counted["compositions"]) == (True, 0, 2)
    planned = load(NodeConfig, [home / "node.toml"]).budget.epsilon
    assert isinstance(planned, float)
    assert counted["before"] < 0.2 < 0.9 * planned < counted["after"] == shown["after"]
    [event] = [it for it in read(home / "state" / "journal.jsonl") if it["event"] == "counted"]
    assert event["lifetime"] == counted["after"]

    assert run(peerpoise, home)[0] == 3, "the budget was for this run once"
    shutil.rmtree(home / "state")
    assert run(peerpoise, home, 'budget.epsilon="unlimited"')[0] == 0
    with Ledger.open(home / "ledger", "ward") as ledger:
        assert ledger.compositions == 1 + 2 + 2
    summary = json.loads((home / "state" / "summary.json").read_text(encoding="utf-8"))
    assert summary["privacy"]["epsilon"]["total"] > 1.2 * planned, "the lost ones count"


def test_counting_where_there_is_no_ledger_makes_a_whole_one(peerpoise: Call, home: Path) -> None:
    """All of its files were lost, which only neighbors would notice."""
    shutil.rmtree(home / "ledger")
    command = ("ledger", "count-lost", "--config", home / "node.toml")
    shown = peerpoise(*command)
    assert "add --yes" in shown.out
    with Ledger.open(home / "ledger", "ward") as ledger:
        assert ledger.rows() == []
    assert peerpoise(*command, "--yes").code == 0
    with Ledger.open(home / "ledger", "ward") as ledger:
        assert ledger.compositions == 2


def test_noise_that_anybody_can_compute_counts_as_none(home: Path) -> None:
    """As `privacy.insecure_seed` marked the ledger, before that mark was lost."""
    node = resolve_paths(load(NodeConfig, [home / "node.toml"]), home)
    run = load(RunConfig, [home / "run.toml"])
    assert _mechanism(node, run).guaranteed
    privacy = run.privacy.model_copy(update={"insecure_seed": 7})
    assert not _mechanism(node, run.model_copy(update={"privacy": privacy})).guaranteed
