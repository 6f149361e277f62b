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

from node.observability.metrics import Metrics
from node.process import KEPT

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
def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "peerpoise.json").read_text())[
        "panels"
    ]
    return found


def test_panels_ask_for_what_there_is(panels: list[dict[str, Any]]) -> None:
    asked = used(" ".join(target["expr"] for panel in panels for target in panel["targets"]))
    assert len(asked) > 10
    assert asked <= names()


def test_panels_ask_the_source_that_is_there(panels: list[dict[str, Any]]) -> None:
    uid = re.findall(r"uid: (\w+)", (DEPLOY / "grafana" / "datasource.yaml").read_text())
    assert [
        *{each["datasource"]["uid"] for panel in panels for each in (panel, *panel["targets"])}
    ] == uid


def test_panels_lie_side_by_side(panels: list[dict[str, Any]]) -> None:
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y)
        for p in places
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert (
        len({panel["id"] for panel in panels})
        == len({panel["title"] for panel in panels})
        == len(panels)
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


def test_the_unit_starts_nothing_again_in_vain() -> None:
    [codes] = re.findall(
        r"(?m)^RestartPreventExitStatus=.*$", (DEPLOY / "systemd" / "peerpoise.service").read_text()
    )
    assert codes in (ROOT / "docs" / "exit-codes.md").read_text()


def test_the_image_keeps_memory_as_a_daemon_does() -> None:
    """MALLOC_… in the environment replaces what node/process.py would do."""
    found = re.findall(r"MALLOC_\w+_=(\d+)", (DEPLOY / "Dockerfile").read_text())
    assert sorted(map(int, found)) == sorted(KEPT.values())
