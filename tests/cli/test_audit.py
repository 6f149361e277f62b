"""`peerpoise audit`: its table, JSON and page, and the exit code of a broken promise; what `plan`
says of curious nodes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from torch import Tensor

from kit import ROOT
from kit.command import Call
from node.audit import AUDITS, Unfit
from node.audit.overheard import check_linear
from node.cli import audit as cli
from node.config import ExperimentConfig, load
from node.learning.plan import Plan
from node.privacy import noise
from node.randomness import Stream
from peer.errors import EXIT_BROKEN

SIGMA = ("--set", "privacy.epsilon=", "--set", "privacy.sigma=2", "--set", "privacy.rate=0.5")
FEW = (*SIGMA, "--set", "train.rounds=8", "--canaries", "900", "--set", "privacy.insecure_seed=1")
release: Callable[..., Tensor] = noise.release


def test_a_run_that_keeps_its_promise(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "audit.html"
    audits = ("--only", "canaries", "--only", "knowledge")
    result = peerpoise("audit", experiment, *FEW, *audits, "--out", page, "--json")
    assert result.code == 0, result.err
    assert re.findall(r"^\w+: .*", result.err, re.MULTILINE)[:2] == [
        "canaries: a neighbor (n1)",
        "canaries: all neighbors (n1, n2)",
    ]
    found = json.loads(result.out)
    canaries = found["audits"]["canaries"][0]
    assert found["failed"] == []
    assert (canaries["mode"], canaries["canaries"], canaries["rounds"]) == ("strict", 900, 8)
    assert canaries["adjacency"] == found["adjacency"] == "add/remove one example"
    near, both = canaries["attackers"]
    assert 0 < near["family"] < both["family"] <= canaries["claimed"]
    assert both["one_run"] <= both["family"]
    assert found["audits"]["knowledge"][0]["nodes"].keys() == {"n1", "n2"}
    text = page.read_text(encoding="utf-8")
    assert "No attack saw more" in text
    assert "all neighbors (n1, n2)" in text
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", text) == []


def test_images_and_members_without_noise(peerpoise: Call, tmp_path: Path) -> None:
    """Everything is found, and the page shows the images."""
    page = tmp_path / "audit.html"
    none = ("--set", "privacy.mode=none", "--set", "privacy.epsilon=", "--set", "train.rounds=3")
    audits = ("--only", "inversion", "--only", "membership", "--quick")
    result = peerpoise("audit", "quickstart", *none, *audits, "--out", page, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["audits"]
    single = found["inversion"][0]["inversion"][0]
    assert (single["attack"], single["batch"], single["recovered"]) == ("trap", 1, 8)
    assert found["membership"][0]["membership"][0]["auc"] > 0.9
    images = re.findall(r'src="data:image/png;base64,([\w+/=]+)"', page.read_text("utf-8"))
    assert len(images) == 3
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)


def quieter(total: Tensor, sigma: float, clip: float, divisor: int, stream: Stream) -> Tensor:
    return release(total, sigma / 2, clip, divisor, stream)


def test_a_promise_that_is_broken(
    peerpoise: Call, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "release", quieter)
    result = peerpoise("audit", experiment, *FEW, "--only", "canaries", "--curious", "n2")
    assert (result.code, EXIT_BROKEN) == (5, 5)
    assert "FAILED: What the curious (n2) received is that of ε_total ≥" in result.out


def test_what_does_not_fit_is_said(peerpoise: Call, experiment: Path) -> None:
    """And nobody is told that a run was attacked when it was not."""
    deca = ("--set", "algorithm.name=deca", "--set", "privacy.mode=none")
    result = peerpoise("audit", experiment, *deca)
    assert result.code == 78
    assert re.search("canaries +What curious nodes learn of deca is not worked out", result.out)
    assert "None of the attacks can be made of this run" in result.out
    alone = peerpoise("audit", experiment, *deca, "--only", "knowledge")
    assert (alone.code, alone.out) == (78, "")
    assert "What curious nodes learn of deca is not worked out" in alone.err


def test_its_help_names_attacks_and_examples(peerpoise: Call) -> None:
    """Those that there are, and examples whose algorithm can be attacked."""
    assert cli.NAMES == tuple(AUDITS)
    shown = " ".join(peerpoise("audit", "--help").out.split())
    assert f"(repeatable): {', '.join(AUDITS)}." in shown
    unbroken = "".join(shown.split())  # non-iid is, at its hyphen
    assert f"anexample:{','.join(cli.EXAMPLES)}." in unbroken
    for name in AUDITS:
        assert f" {name}: " in shown
    audible = set()
    for file in (ROOT / "deploy" / "examples").glob("*.toml"):
        config = load(ExperimentConfig, [file], environ={})
        plan = Plan.of(config.run_config, config.neighborhoods(config.experiment.names))
        with suppress(Unfit):
            check_linear(plan)
            audible.add(file.stem)
    assert set(cli.EXAMPLES) == audible


@pytest.mark.parametrize("name", ["local", "centralized"])
def test_who_is_silent_is_not_attacked(peerpoise: Call, experiment: Path, name: str) -> None:
    result = peerpoise("audit", experiment, "--set", f"algorithm.name={name}")
    assert (result.code, result.out) == (78, "")
    assert f"{name} sends nothing to anybody" in result.err


def test_hosts_with_own_data(peerpoise: Call, experiment: Path, tmp_path: Path) -> None:
    """The run that was packed is audited, with its hosts and the unit of its ε."""
    own = ("--set", "task.data=own", "--set", "task.unit=patient_id")
    hosts = [f"--host={name}=127.0.0.1:74{k}0" for k, name in enumerate(("a", "b"))]
    data = [f"--data={name}=x-{name}:/{name}.csv" for name in ("a", "b")]
    packed = tmp_path / "packed"
    assert peerpoise("pack", experiment, *own, *hosts, *data, "--out", packed).code == 0
    result = peerpoise("audit", packed / "a" / "run.toml", "--quick", "--canaries", "400")
    assert result.code == 0, result.err
    assert "Canaries at a: can those who listen tell which values of patient_id" in result.out
    assert "add/remove all rows of one patient_id" in result.out
    assert "one example" not in result.out
    assert "stay with their hosts" in result.out
    assert result.out.rstrip().endswith("Not made: inversion, membership.")
    node = peerpoise("audit", packed / "a" / "node.toml")
    assert node.code == 78
    assert f"audit the run that it names, {packed / 'a' / 'run.toml'}." in node.err


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_curious_node_that_is_none(peerpoise: Call, experiment: Path, command: str) -> None:
    result = peerpoise(command, experiment, "--curious", "n0,n7", *SIGMA)
    assert result.code == 78
    assert "n7 is no node of this run; they are n0, n1, n2." in result.err


def test_no_audit_of_that_name(peerpoise: Call, experiment: Path) -> None:
    result = peerpoise("audit", experiment, "--only", "canary")
    assert result.code == 78
    assert "canaries" in result.err


def test_plan_says_what_curious_nodes_could_reconstruct(peerpoise: Call, experiment: Path) -> None:
    star = ("--set", "topology.kind=star", "--set", "algorithm.name=d-psgd", *SIGMA)
    result = peerpoise("plan", experiment, *star, "--rounds", "6", "--curious", "n0", "--json")
    assert result.code == 0, result.err
    known = json.loads(result.out)["knowledge"]
    assert known["curious"] == ["n0"]
    assert known["nodes"]["n2"] == {"hops": 1, "known": 5, "of": 6, "last_round": 4}
    table = peerpoise("plan", experiment, *star, "--curious", "n1").out
    assert "What n1 could reconstruct of 2 rounds without noise" in table
