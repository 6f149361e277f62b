"""Files no Python reads: rules, dashboard, compose, unit. Each is checked by the program it is for,
if it is here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node.algorithms import find
from node.observability.metrics import Metrics
from node.process import KEPT
from node.tasks.reasoning import EXACT
from peer.errors import (
    LedgerError,
    PeerpoiseError,
    PeersUnavailable,
    RemoteError,
    StorageError,
    TemporaryFailure,
)

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
PACKAGES = {
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
    "systemd-analyze": "systemd",
}
"""Program -> Debian's package of it."""


def call(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which(program):
        pytest.skip(
            f"{program} is not on this machine; on Debian: apt-get install {PACKAGES[program]}"
        )
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def names() -> set[str]:
    """Of every series a daemon may export."""
    found = {"up", "ALERTS"}
    for family in Metrics(version="", torch="", python="").registry.collect():
        ends = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"],
            "summary": ["_sum", "_count"],
        }
        found |= {family.name + end for end in ends.get(family.type, [""])}
    return found


def used(expressions: str) -> set[str]:
    return set(re.findall(r"\b(?:peerpoise|process)_\w+", expressions))


def test_prometheus_takes_its_files() -> None:
    done = call("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = call("promtool", "test", "rules", PROMETHEUS / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_never_fires_is_noticed(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS / "alerts_test.yml", tmp_path)
    rules = (PROMETHEUS / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(
        rules.replace("peerpoise_insecure == 1", "peerpoise_insecure == 2")
    )
    assert call("promtool", "test", "rules", tmp_path / "alerts_test.yml").returncode != 0


def test_every_alert_is_tested_and_asks_for_what_there_is() -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text()
    alerts = set(re.findall(r"alert: (\w+)", rules))
    assert len(alerts) > 5
    assert alerts == set(
        re.findall(r"alertname: (\w+)", (PROMETHEUS / "alerts_test.yml").read_text())
    )
    assert (
        used(" ".join(re.findall(r"expr: (.*?)\n +(?:for|labels|annotations):", rules, re.DOTALL)))
        <= names()
    )


@pytest.fixture
def everything() -> list[dict[str, Any]]:
    """Panels and rows; a row's panels after it."""
    page = json.loads((DEPLOY / "grafana" / "peerpoise.json").read_text())
    return [panel for top in page["panels"] for panel in (top, *top.get("panels", []))]


@pytest.fixture
def panels(everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [panel for panel in everything if panel["type"] != "row"]


def test_panels_ask_for_what_there_is(panels: list[dict[str, Any]]) -> None:
    asked = used(" ".join(target["expr"] for panel in panels for target in panel["targets"]))
    assert len(asked) > 10
    assert asked <= names()


def test_panels_of_reinforcement_show_what_is_declared(panels: list[dict[str, Any]]) -> None:
    """By neighbor, if it is; and a daemon exports it."""
    metrics = Metrics(version="", torch="", python="")
    declared = {each.name: each for name in ("fgrpo", "sapo") for each in find(name).DIAGNOSTICS}
    for each in declared.values():
        metrics.diagnostic(each.name, 1.0, "n1" if each.per_neighbor else None)
    metrics.task_metric(EXACT.name, 0.5)
    chosen = [
        (target["expr"], target["legendFormat"])
        for panel in panels
        for target in panel["targets"]
        if "=~" in target["expr"]
    ]
    assert len(chosen) >= 12
    for expression, legend in chosen:
        [(series, label, pattern)] = re.findall(r'^(\w+){(\w+)=~"(.*)"}$', expression)
        exported = [
            sample.labels
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == series and re.fullmatch(pattern, sample.labels[label])
        ]
        names = {each[label] for each in exported}
        assert names == ({EXACT.name} if label == "metric" else {*pattern.split("|")})
        assert ("{{peer}}" in legend) == any(each.get("peer") for each in exported)
        assert len(names) == 1 or f"{{{{{label}}}}}" in legend


def test_panels_ask_the_source_that_is_there(panels: list[dict[str, Any]]) -> None:
    uid = re.findall(r"uid: (\w+)", (DEPLOY / "grafana" / "datasource.yaml").read_text())
    assert [
        *{each["datasource"]["uid"] for panel in panels for each in (panel, *panel["targets"])}
    ] == uid


def test_panels_lie_side_by_side(everything: list[dict[str, Any]]) -> None:
    places = [panel["gridPos"] for panel in everything]
    cells = [
        (x, y)
        for p in places
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert (
        len({panel["id"] for panel in everything})
        == len({panel["title"] for panel in everything})
        == len(everything)
    )


def test_compose_takes_its_files() -> None:
    """With the GPU file, each node has what it had without, and a GPU."""
    files = [
        argument
        for name in ("", ".gpu")
        for argument in ("-f", str(ROOT / f"docker-compose{name}.yml"))
    ]
    done = call("docker-compose", *files, "--profile", "grafana", "config")
    assert done.returncode == 0, done.stderr
    for setting in (
        "driver: nvidia",
        "PEERPOISE_COMPUTE__DEVICE: cuda",
        "PEERPOISE_METRICS__LISTEN:",
        "restart: on-fail",
    ):
        assert done.stdout.count(setting) == 4


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "peerpoise.service").read_text()
    assert "ExecStart=/opt/peerpoise/bin/peerpoise run" in unit
    (tmp_path / "peerpoise.service").write_text(
        re.sub(r"(?m)^(ExecStart)=\S+", r"\1=/bin/true", unit)
    )
    done = call("systemd-analyze", "verify", "--man=no", tmp_path / "peerpoise.service")
    assert (done.returncode, done.stderr) == (0, "")


PASSING = {PeersUnavailable, StorageError, LedgerError, TemporaryFailure}
"""What a restart may well find over: neighbors that come, a disk that has room, a port that is
free.
"""


def test_the_unit_starts_nothing_again_in_vain() -> None:
    """Any other mistake stays what it is until somebody mends it."""
    [codes] = re.findall(
        r"(?m)^RestartPreventExitStatus=.*$", (DEPLOY / "systemd" / "peerpoise.service").read_text()
    )
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    assert codes in page
    kinds = set(PeerpoiseError.__subclasses__()) - {RemoteError}
    final = {kind.exit_code for kind in kinds - PASSING}
    usage = 2
    assert {*map(int, re.findall(r"\d+", codes))} == final | {usage}
    for code in (usage, *(kind.exit_code for kind in kinds)):
        assert f"\n| {code} |" in page


def test_the_image_keeps_memory_as_a_daemon_does() -> None:
    """MALLOC_… in the environment replaces what node/process.py would do."""
    found = re.findall(r"MALLOC_\w+_=(\d+)", (DEPLOY / "Dockerfile").read_text())
    assert sorted(map(int, found)) == sorted(KEPT.values())
