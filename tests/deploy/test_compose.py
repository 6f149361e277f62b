"""docker-compose.yml for real: build, start, train, kill a node, see the others end. `make
compose-test`.

Takes whatever engine DOCKER_HOST names: everything is asked through the engine, Prometheus's HTTP
API too (promtool in its container). Its own project, image and volumes; all but the image is
removed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("ROUNDS", "2000"))
PROJECT = f"peerpoise-test-{os.getpid()}"
NODES = {"n0", "n1", "n2", "n3"}
ENVIRON = {
    "ROUNDS": str(ROUNDS),
    "PEERPOISE_IMAGE": "peerpoise-test",
    "PROMETHEUS_LISTEN": "127.0.0.1:",  # any free port
    "DOCKER_BUILDKIT": "1",
    "COMPOSE_DOCKER_CLI_BUILD": "1",
}
pytestmark = [
    pytest.mark.skipif(
        "COMPOSE_TEST" not in os.environ,
        reason="make compose-test runs it; it needs a Docker engine",
    ),
    pytest.mark.timeout(1800),
]


def call(*command: str, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRON}, capture_output=True, text=True
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    )
    return done.stdout.strip()


def compose(*command: str, check: bool = True) -> str:
    """`docker compose`, or the older docker-compose."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    program = ["docker", "compose"] if plugin else ["docker-compose"]
    return call(*program, "-p", PROJECT, *command, check=check)


def inspect(service: str, what: str) -> str:
    """A field of a service's container."""
    return call("docker", "inspect", "-f", "{{" + what + "}}", compose("ps", "-a", "-q", service))


def query(expression: str) -> dict[str, float]:
    """instance -> value now, as Prometheus's HTTP API has it; of several series of an instance, the
    last.
    """
    command = ("promtool", "query", "instant", "-o", "json", "http://localhost:9090", expression)
    found = json.loads(compose("exec", "-T", "prometheus", *command))
    return {
        each["metric"].get("instance", "").partition(":")[0]: float(each["value"][1])
        for each in found
    }


def until(condition: Callable[[], Any], seconds: float) -> float:
    """Seconds until it held; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, compose("logs", "--tail=20", check=False)
        time.sleep(1)
    return time.monotonic() - began


def say(text: str) -> None:
    print(f"compose: {text}", flush=True)


@pytest.fixture(scope="module", autouse=True)
def stack() -> Iterator[None]:
    """All services but grafana, up; nothing of them afterwards."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "version"], capture_output=True).returncode
    ):
        pytest.fail("No Docker engine answers; start one or set DOCKER_HOST.")
    began = time.monotonic()
    compose("build")
    say(f"images built in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    try:
        compose("up", "-d")
        say(f"packed and started in {time.monotonic() - began:.0f} s")
        yield
    finally:
        compose("down", "-v", "--timeout", "10")


def test_all_nodes_train() -> None:
    seconds = until(lambda: len(query("peerpoise_rounds_total > 5")) == len(NODES), 180)
    say(f"all four nodes past round 5 in another {seconds:.0f} s, seen in Prometheus")
    assert set(query("up == 1")) == NODES
    assert set(query("peerpoise_tls_enabled == 1")) == NODES
    assert (
        len(
            {
                inspect(name, "range .NetworkSettings.Networks}}{{.IPAddress}}{{end")
                for name in NODES
            }
        )
        == 4
    )


@pytest.mark.parametrize("name", sorted(NODES))
def test_a_node_can_do_little(name: str) -> None:
    looked = compose(
        "exec",
        "-T",
        name,
        "sh",
        "-c",
        "id -u; grep -h ^CapEff /proc/self/status; touch /etc/peerpoise/x /opt/x; env",
        check=False,
    )
    user, capabilities, *environ = looked.splitlines()
    assert (user, int(capabilities.split()[1], 16)) == ("10001", 0)
    assert "MALLOC_TRIM_THRESHOLD_=1073741824" in environ
    assert inspect(name, ".HostConfig.ReadonlyRootfs") == "true"
    assert not compose(
        "exec", "-T", name, "sh", "-c", "ls /opt/x /etc/peerpoise/x 2>/dev/null", check=False
    )


def test_nodes_are_healthy() -> None:
    until(lambda: all(inspect(name, ".State.Health.Status") == "healthy" for name in NODES), 60)


def test_every_panel_of_the_dashboard_shows_something() -> None:
    """But those of reinforcement, which are in a row that is folded up."""
    page = json.loads((ROOT / "deploy" / "grafana" / "peerpoise.json").read_text())
    panels = [each for each in page["panels"] if each["type"] != "row"]
    until(
        lambda: not [each["title"] for each in panels if not query(each["targets"][0]["expr"])], 60
    )


def test_a_node_that_crashes_comes_back() -> None:
    reached = query("peerpoise_round")["n1"]
    compose("exec", "-T", "n1", "sh", "-c", "kill -9 -1", check=False)
    began = time.monotonic()
    until(lambda: inspect("n1", ".RestartCount") == "1", 30)
    until(
        lambda: (
            query("peerpoise_round").get("n1", 0) > reached and query('up{instance=~"n1:.*"} == 1')
        ),
        120,
    )
    say(
        f"n1 crashed in round {reached:.0f}; {time.monotonic() - began:.0f} s later it has "
        "gone on from its checkpoint"
    )


def test_a_node_is_killed_and_the_others_finish() -> None:
    before = query("peerpoise_round")
    call("docker", "kill", compose("ps", "-q", "n3"))
    began = time.monotonic()
    others = NODES - {"n3"}
    until(
        lambda: min(query("peerpoise_round").get(name, 0) for name in others) > before["n3"] + 10,
        120,
    )
    say(
        f"n3 killed in round {before['n3']:.0f}; 10 rounds later "
        f"{time.monotonic() - began:.0f} s on"
    )
    until(lambda: query('ALERTS{alertname="PeerpoiseNodeDown", alertstate="firing"}'), 180)
    say(f"its alert fires {time.monotonic() - began:.0f} s after its death")
    until(lambda: all(inspect(name, ".State.Status") == "exited" for name in others), 600)
    say(f"the others are done {time.monotonic() - began:.0f} s after its death")
    assert {name: inspect(name, ".State.ExitCode") for name in NODES} == {
        "n3": "137",
        **dict.fromkeys(others, "0"),
    }
    assert query("peerpoise:finished == 1").keys() == others
    assert query('ALERTS{alertname="PeerpoiseNodeDown"}').keys() == {"n3"}
    accuracy = query('last_over_time(peerpoise_task_metric{metric="accuracy"}[1h])')
    say("test accuracy " + ", ".join(f"{name} {accuracy[name]:.1%}" for name in sorted(others)))


def test_grafana_shows_the_dashboard() -> None:
    image = (
        (ROOT / "deploy" / "grafana" / "Dockerfile").read_text().partition("GRAFANA=")[2].split()[0]
    )
    if not call("docker", "images", "-q", image):
        pytest.skip(f"this Docker engine has no image {image}: docker pull {image}")
    compose("--profile", "grafana", "up", "-d", "--build", "--no-deps", "grafana")
    address = "http://localhost:3000/api/dashboards/uid/peerpoise"
    until(lambda: compose("exec", "-T", "grafana", "wget", "-qO-", address, check=False), 60)
