"""docs/own-task.md: its snippets are run as they stand, by every command that runs a task, and
learn the same rows.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from node import tasks
from node.config import DataSection, RunConfig
from node.experiments import local_cluster
from node.tasks.loading import source_digest
from peer.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "own-task.md"
COUNTED = """
import sys
import EXAMPLE

def make_task(run, data):
    task = EXAMPLE.make_task(run, data)
    print("rows", type(data).__name__, task.num_examples, file=sys.stderr)
    return task
"""
OLD = """
import numpy as np
import torch
from node.config import DataSection
from slope import Slope

def make_task(run, data):
    rows = torch.from_numpy(np.load(data.rows)) if isinstance(data, DataSection) else torch.from_numpy(data)
    return Slope(rows / 2000, rows / 1000 - 1)
"""
NODES = ("n0", "n1")
EXAMPLES = ("slope", "circle")
"""The page's Python, in its order."""


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    codes, [settings] = snippets("python"), snippets("toml")
    for name, code in zip(EXAMPLES, codes, strict=True):
        assert len(code.splitlines()) < 60
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        (tmp_path / f"counted_{name}.py").write_text(
            COUNTED.replace("EXAMPLE", name), encoding="utf-8"
        )
    (tmp_path / "old.py").write_text(OLD, encoding="utf-8")
    (tmp_path / "slope.toml").write_text(settings, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (*EXAMPLES, "old"):
        sys.modules.pop(name, None)
    return tmp_path


def start(*words: str, path: Path) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(path),
        "OMP_NUM_THREADS": "1",
        "XDG_STATE_HOME": str(path / "state"),
    }
    command = [sys.executable, "-m", "peerpoise", *words]
    return subprocess.Popen(
        command, env=environ, cwd=path, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, text=True
    )


def peerpoise(*words: str, path: Path) -> tuple[str, str]:
    """What it prints, to standard output and error."""
    process = start(*words, path=path)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out, err


def test_the_pages_example_learns(example: Path) -> None:
    out, _ = peerpoise(
        "simulate",
        "slope.toml",
        "--task",
        "slope.py:make_task",
        "--folder",
        "out",
        "--json",
        path=example,
    )
    summary = json.loads(out)
    assert summary["task_metrics"]["error"]["mean"] < 0.2
    assert summary["algorithm_metrics"]["averaged_model"]["error"] < 0.2


def test_the_pages_module_learns(example: Path) -> None:
    fewer = ("--set", "experiment.nodes=2", "--set", "train.rounds=60", "--set", "algorithm.lr=1.0")
    more = (*fewer, "--json", "--folder", "out")
    out, _ = peerpoise(
        "simulate", "slope.toml", "--task", "circle.py:make_task", *more, path=example
    )
    assert json.loads(out)["task_metrics"]["accuracy"]["worst"] > 0.85


def settings(*more: str) -> list[str]:
    given = ("experiment.nodes=2", "train.rounds=2", "privacy.epsilon=", "privacy.sigma=2", *more)
    return [word for each in given for word in ("--set", each)]


def counts(text: str) -> list[tuple[str, int]]:
    """(what `make_task` was given, examples), in the order in which tasks were made, of those of a
    node's own part.
    """
    pairs = [
        (kind, int(count)) for kind, count in re.findall(r"^rows (\w+) (\d+)$", text, re.MULTILINE)
    ]
    return [
        (kind, count) for kind, count in pairs if count > 1
    ]  # with one row a run is only checked


def packed(
    example: Path, task: str, data: str = "digits", own: Sequence[str] = ()
) -> dict[str, str]:
    """Standard error of each host of a packed run."""
    with local_cluster._reserved(len(NODES)) as ports:
        hosts = [
            w
            for name, port in zip(NODES, ports, strict=True)
            for w in ("--host", f"{name}=127.0.0.1:{port}")
        ]
        run = settings(f"task.name={task}", f"task.data={data}")
        peerpoise("pack", "slope.toml", *run, *hosts, *own, path=example)
        runs = {
            name: start("run", "--config", f"packed/{name}/node.toml", path=example)
            for name in NODES
        }
        ended = {name: process.communicate()[1] for name, process in runs.items()}
    assert [process.returncode for process in runs.values()] == [0, 0], ended
    return ended


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["slope", pytest.param("circle", marks=pytest.mark.long)])
def test_every_command_gives_a_node_its_rows_and_no_others(example: Path, name: str) -> None:
    task = ("--task", f"counted_{name}:make_task")
    _, simulated = peerpoise(
        "simulate", "slope.toml", *settings(), *task, "--folder", "simulated", path=example
    )
    peerpoise("up", "slope.toml", *settings(), *task, "--folder", "up", path=example)
    homes = [example / "up" / "nodes" / name for name in NODES]
    right = [("ndarray", len(np.load(home / "rows.npy"))) for home in homes]
    assert sum(count for _, count in right) < 1500
    assert counts(simulated) == right
    assert [counts((home / "daemon.log").read_text(encoding="utf-8")) for home in homes] == [
        [pair] for pair in right
    ]
    assert [counts(text) for text in packed(example, task[1]).values()] == [
        [pair] for pair in right
    ]


def own_points(example: Path) -> Sequence[str]:
    """Options of `pack` for own data: each node has points of its own."""
    x = np.linspace(-1, 1, 300)
    for name, mine in zip(NODES, (x[:120], x[120:]), strict=True):
        np.save(example / f"{name}.npy", np.stack([mine, 2 * mine - 1]))
    return [
        word for name in NODES for word in ("--data", f"{name}=points-{name}:{example / name}.npy")
    ]


@pytest.mark.cluster
def test_own_data_are_given_as_the_nodes_section(example: Path) -> None:
    ended = packed(example, "counted_slope:make_task", "own", own_points(example))
    assert [counts(text) for text in ended.values()] == [
        [("DataSection", 120)],
        [("DataSection", 180)],
    ]


def run(name: str, **task: str) -> RunConfig:
    return RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"name": name, **task}})


@pytest.mark.parametrize("name", ["slope:make_task", "old:make_task"])
@pytest.mark.parametrize("rows", [[5], [3, 17, 400], list(range(0, 1400, 7))])
def test_a_daemons_public_rows_are_the_simulators(
    example: Path, name: str, rows: list[int]
) -> None:
    np.save(example / "rows.npy", np.array(rows))
    section = DataSection(name="digits", rows=example / "rows.npy")
    daemons, simulated = tasks.make(run(name), section), tasks.make(run(name), np.array(rows))
    every = torch.arange(len(rows))
    assert daemons.num_examples == simulated.num_examples == len(rows)
    for ours, theirs in zip(daemons.batch(every), simulated.batch(every), strict=True):
        assert ours.equal(theirs)


def test_without_a_file_of_rows_a_node_learns_them_all(example: Path) -> None:
    assert tasks.make(run("slope:make_task"), DataSection(name="digits")).num_examples == 1438
    with pytest.raises(ConfigurationError, match=r"set task.data to own\."):
        tasks.make(run("slope:make_task"), DataSection(name="digits", path=example / "n0.npy"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:make", "can't be imported: No module named"),
        ("slope:none", "slope has no function 'none'"),
        ("slope:SIZE", "slope has no function 'SIZE'"),
        ("slope:Slope.start", "has no function"),
        ("slope:", "names no function"),
        ("builtins:print", "made something without layout, num_examples"),
        ("slope:Slope", r"num_examples raised TypeError: .* \(slope.py, line [0-9]+\)"),
        ("slope", "your own as package.module:function"),
        (":make_task", "names no module"),
        (".slope:make_task", "names no module"),
        ("slo-pe:make_task", "names no module"),
        ("", "Unknown task ''"),
    ],
)
def test_what_is_no_task_is_one_sentence(example: Path, name: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        tasks.make(run(name), np.arange(5))


def test_code_is_known_by_the_files_that_its_names_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python reads them: whichever way they are named, whatever ends their lines."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "digested.py"
    file.write_bytes(b"x = 1\ny = 2\n")
    digest = source_digest([f"{file}:make_task"])
    assert len(digest) == 32
    assert digest == source_digest(["digested:make_task"]) == source_digest(["own:digested"])
    assert digest == source_digest([f"own:{file}"])
    package = tmp_path / "around"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it was imported')")
    (package / "digested.py").write_bytes(file.read_bytes())
    assert digest == source_digest(["own:around.digested"])
    assert source_digest(["own:around.nothing", "own:nothing.like.it"]) == b""
    file.write_bytes(b"x = 1\r\ny = 2\r\n")
    assert source_digest(["digested:make_task"]) == digest
    file.write_bytes(b"x = 1\ny = 3\n")
    assert source_digest(["digested:make_task"]) != digest
    assert source_digest([]) == b""
