"""`peerpoise bench`: the parts of a round, counted as a real run counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.command import Call
from node.algorithms import find
from node.cli import bench
from node.records import journal

QUICK = 0.001


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured does not matter here, how often it is counted does."""
    monkeypatch.setattr(bench, "SECONDS", QUICK)
    monkeypatch.chdir(tmp_path)


def measured(peerpoise: Call, *arguments: str | Path) -> dict[str, Any]:
    result = peerpoise("bench", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    parts = found["parts"].values()
    assert sum(it["share"] for it in parts) == pytest.approx(1)
    assert sum(it["times"] * it["seconds"] for it in parts) == pytest.approx(found["round_seconds"])
    assert all(it["seconds"] > 0 for it in parts if it["times"])
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [("dpdl", "ring"), ("dpdl", "star"), ("dmsgd", "ring"), ("local", "star")]
)
def test_it_counts_what_a_run_counts(
    peerpoise: Call, experiment: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """Bytes and releases of the node that has most of them."""
    settings = [f"algorithm.name={name}", f"topology.kind={kind}", "experiment.nodes=4"]
    options = [
        word
        for it in (*settings, "privacy.epsilon=", "privacy.sigma=2.2")
        for word in ("--set", it)
    ]
    found = measured(peerpoise, experiment, *options)
    ran = peerpoise("simulate", experiment, *options, "--folder", tmp_path / "run", "--json")
    rounds = found["rounds"]
    assert rounds * found["bytes_sent"] == json.loads(ran.out)["bytes_sent"]["max"]
    journals = [
        journal.read(home / "journal.jsonl") for home in (tmp_path / "run" / "nodes").iterdir()
    ]
    phases = [[it["bytes_sent"] for it in events if it["event"] == "phase"] for events in journals]
    assert max(sum(each) for each in phases) == rounds * found["bytes_sent"], (
        "simulate's lines say the same"
    )
    most = find(name).releases({"ring": 2, "star": 3}[kind])
    assert (
        most
        == found["releases"]
        == found["parts"]["gradient"]["times"]
        == found["parts"]["debit"]["times"]
    )
    assert found["parts"]["wire"]["times"] * 4 * found["parameters"] == found["bytes_sent"]


def test_without_privacy_there_is_no_noise_and_no_debit(peerpoise: Call, experiment: Path) -> None:
    options = ("--set", "privacy.mode=none", "--set", "privacy.epsilon=")
    found = measured(peerpoise, experiment, *options)
    assert found["parts"].keys() == {"gradient", "steps", "wire"}
    assert found["private_over_plain"] is None
    assert found["parts"]["gradient"]["seconds"] == found["plain_seconds"]
    assert found["batch"] == 90


def test_for_people_and_without_a_file(peerpoise: Call, tmp_path: Path) -> None:
    said = peerpoise("bench").out
    for part in (
        "gradient",
        "noise",
        "debit",
        "steps",
        "wire",
        "A plain backward pass",
        "waiting comes on top",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["task.data=own"], "bench divides public data"),
        (["algorithm.name=centralized"], "peerpoise simulate"),
        (["experiment.device=mps"], "no GPU of a Mac"),
        (["privacy.rate=2"], "privacy.rate"),
    ],
)
def test_mistakes(peerpoise: Call, experiment: Path, settings: list[str], part: str) -> None:
    options = [word for it in settings for word in ("--set", it)]
    result = peerpoise("bench", experiment, *options)
    assert (result.code, part in result.err, len(result.err.splitlines())) == (78, True, 1), (
        result.err
    )
