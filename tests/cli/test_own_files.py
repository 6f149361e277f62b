"""`up --data n0=PATH …`: the own files of several sites, tried on one machine; and public files of
which every host gets a copy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kit import wards
from kit.command import Call
from node.config import RunConfig, load
from peer.errors import ConfigurationError, DataError

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
SEEDED = ("--set", "privacy.insecure_seed=7", "--set", "train.rounds=3")
OWN = """
import numpy as np
import torch
from docs_slope import Slope, SIZE
X = torch.linspace(-1, 1, SIZE)

def labels(run):
    assert run.task.path.suffix == ".strange"
    return [0] * 30 + [1] * 10

def make_task(run, data):
    x = X[torch.from_numpy(data)]
    return Slope(x, 2 * x - 1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tables.toml of docs/tables.md, and the tables beside it."""
    text = PAGE.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    (tmp_path / "tables.toml").write_text(text, encoding="utf-8")
    wards.write(tmp_path, n=120)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*names: str) -> list[str]:
    data = [f"--data=n{k}={name}.csv" for k, name in enumerate(names)]
    return data + [f"--test=n{k}:{name}-test.csv" for k, name in enumerate(names)]


def test_each_node_learns_from_its_own_file(here: Path, peerpoise: Call) -> None:
    result = peerpoise("simulate", "tables.toml", *options("a", "b", "c"), *SEEDED, "--json")
    assert result.code == 0, result.err
    assert "lifetime budget counts this trial: keep its models" in result.err
    summary = json.loads(result.out)
    assert summary["nodes"] == 3, "as many as there are files"
    assert len(set(summary["task_metrics"]["auc"]["per_node"].values())) == 3
    (folder,) = (here / "runs").iterdir()
    assert json.loads((folder / "partition.json").read_text())["histogram"] == {}
    other = peerpoise("simulate", "tables.toml", *options("b", "a", "c"), *SEEDED, "--json")
    assert json.loads(other.out)["params_digest"] != summary["params_digest"]


@pytest.mark.cluster
@pytest.mark.long
def test_daemons_learn_the_same(here: Path, peerpoise: Call) -> None:
    arguments = ["tables.toml", *options("a", "b"), *SEEDED, "--json"]
    by_daemons = peerpoise("up", *arguments, "--folder", "up")
    assert by_daemons.code == 0, by_daemons.err
    alone = json.loads(peerpoise("simulate", *arguments, "--folder", "alone").out)
    assert json.loads(by_daemons.out)["params_digest"] == alone["params_digest"]
    assert list((here / "up" / "nodes" / "n0" / "ledger").glob("n0.*"))
    assert peerpoise("export", "up", "--out", "model.safetensors").code == 0
    assert "public test set" not in (here / "model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], ConfigurationError.exit_code, "give each node its own: --data n0=PATH --data n1=PATH"),
        (
            ["--data=n0=a.csv", "--data=x=b.csv"],
            ConfigurationError.exit_code,
            "--data names x, but the nodes are n0, n1.",
        ),
        (
            ["--data=n0=a.csv", "--set", "experiment.nodes=3"],
            ConfigurationError.exit_code,
            "--data n1=PATH is missing: each of the 3 nodes",
        ),
        (
            ["--data=n0=a.csv", "--data=n1=nothing.csv"],
            DataError.exit_code,
            "--data: there is no file or folder nothing.csv for n1.",
        ),
        (
            ["--data=n0=a.csv", "--test=n1:b.csv"],
            ConfigurationError.exit_code,
            "--test names n1, but the nodes are n0.",
        ),
        (
            ["--data=n0=a.csv", "--data=n1=b.csv", "--set", "algorithm.name=centralized"],
            ConfigurationError.exit_code,
            "centralized learns from all rows in one place",
        ),
        (
            ["--data=n0=a.csv", "--set", "task.data=file"],
            ConfigurationError.exit_code,
            "--data and --test need task.data = \"own\"; the file says 'file'.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["up", "simulate"])
def test_a_mistake_is_a_sentence(
    here: Path, peerpoise: Call, command: str, arguments: list[str], code: int, sentence: str
) -> None:
    result = peerpoise(command, "tables.toml", *arguments)
    assert result.code == code
    assert sentence in result.err
    assert result.err.count("\n") <= 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize("labeled", [True, False])
def test_a_file_that_only_the_task_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peerpoise: Call, labeled: bool
) -> None:
    """Its rows are divided by the task's labels; without those we would have to read it."""
    page = PAGE.with_name("own-task.md").read_text(encoding="utf-8")
    slope = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "docs_slope.py").write_text(slope, encoding="utf-8")
    own = OWN if labeled else OWN.replace("def labels", "def others")
    (tmp_path / "mine.py").write_text(own, encoding="utf-8")
    (tmp_path / "run.toml").write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "rows.strange").write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    file = ["--set", "task.data=file", "--set", "task.path=rows.strange"]
    rounds = ["--set", "train.rounds=2", "--folder", "run"]
    result = peerpoise("simulate", "run.toml", "--task", "mine.py:make_task", *file, *rounds)
    if not labeled:
        assert result.code == DataError.exit_code
        assert "rows.strange is of no known kind" in result.err
        assert "a function labels(run)" in result.err
        return
    assert result.code == 0, result.err
    histogram = json.loads((tmp_path / "run" / "partition.json").read_text())["histogram"]
    assert [sum(row[k] for row in histogram.values()) for k in (0, 1)] == [30, 10]


def test_labels_are_numbers_of_rows(tmp_path: Path, peerpoise: Call) -> None:
    (tmp_path / "mine.py").write_text(
        "def make_task(run, data):\n    pass\ndef labels(run):\n    return [0.5]\n",
        encoding="utf-8",
    )
    arguments = ["--set", "task.data=file", "--task", f"{tmp_path}/mine.py:make_task"]
    result = peerpoise("simulate", "quickstart", *arguments, "--folder", tmp_path / "run")
    assert result.code == ConfigurationError.exit_code
    assert "labels(run) has to return an integer from 0 up for each row" in result.err


def test_every_host_gets_a_copy_of_a_public_file(peerpoise: Call, tmp_path: Path) -> None:
    assert peerpoise("init", "table", "--out", tmp_path / "table").code == 0
    hosts = ("--host", "a=127.0.0.1:1", "--host", "b=127.0.0.1:2", "--out", tmp_path / "packed")
    assert peerpoise("pack", tmp_path / "table" / "run.toml", *hosts).code == 0
    shutil.rmtree(tmp_path / "table")
    runs = [load(RunConfig, [tmp_path / "packed" / name / "run.toml"]) for name in "ab"]
    assert [run.task.path for run in runs] == [tmp_path / f"packed/{it}/sample.csv" for it in "ab"]
    assert all(run.task.path and run.task.path.is_file() for run in runs)
    assert runs[0].run_id == runs[1].run_id
