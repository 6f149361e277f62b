"""Whoever writes run.toml may not choose whose code runs beside the private data; nor may the
environment make a daemon fail, or a core dump hold its key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from node import process
from node.config import BudgetSection, ExperimentConfig, NodeConfig, TaskSection, load, write
from node.config.task import BUNDLED_TASKS
from node.experiments import provisioning
from node.experiments.resolve import resolve
from node.records.checkpoint import save_model
from node.tasks import TASKS
from peer.errors import ConfigurationError
from peer.failpoint import VARIABLE
from peer.message import Layout

CODE = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
def make_task(run, data):
    raise ValueError
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node with data of its own, for which run.toml names a task of somebody's."""
    values = {"privacy": {"sigma": 2.0}, "task": {"data": "own"}}
    nodes = {
        tmp_path / name: NodeConfig(
            name=name,
            identity=provisioning.OWN,
            budget=BudgetSection(epsilon="unlimited", ledger_dir=Path("ledger")),
            data={"name": "ward", "path": "data.npz"},  # type: ignore[arg-type]
        )
        for name in "ab"
    }
    resolved = resolve(ExperimentConfig(**values), ["a", "b"])  # type: ignore[arg-type]
    provisioning.prepare(tmp_path, resolved.pinned(), nodes)
    np.savez(tmp_path / "a" / "data.npz", x=np.zeros((4, 8, 8), np.float32), y=np.arange(4))
    (tmp_path / "evil.py").write_text(CODE)
    text = (tmp_path / "a" / "run.toml").read_text()
    (tmp_path / "a" / "run.toml").write_text(
        text.replace('name = "classification"', 'name = "evil:make_task"')
    )
    return tmp_path / "a"


def called(home: Path, *words: str | Path, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "peerpoise", *map(str, words)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{home.parent}{os.pathsep}{os.getcwd()}",
        **environment,
    }
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--config", "node.toml"),
        pytest.param(("config", "check", "node.toml"), marks=pytest.mark.long),
        ("plan", "node.toml"),
        ("eval", "."),
    ],
)
def test_no_code_runs_that_the_nodes_file_does_not_name(home: Path, words: tuple[str, ...]) -> None:
    if words[0] == "eval":
        save_model(home / "model.safetensors", Layout((("w", (3,)),)), torch.zeros(3))
    code, said = called(home, *words)
    assert (code, "'evil:make_task', whose code would run here" in said) == (78, True), said
    assert not (home.parent / "evil.ran").exists()
    if words[0] != "plan":  # which needs no task where the data are a node's own
        text = (home / "node.toml").read_text()
        (home / "node.toml").write_text(text.replace("tasks = []", 'tasks = ["evil:make_task"]'))
        called(home, *words)
        assert (home.parent / "evil.ran").exists(), "the power check: named, it runs"


def test_ours_are_those_of_the_table() -> None:
    assert sorted(TASKS) == sorted(BUNDLED_TASKS)


def test_up_and_pack_name_the_runs_own_task(tmp_path: Path) -> None:
    values = {"privacy": {"sigma": 2.0}, "task": {"name": "a.b:c"}}
    assert provisioning.own_tasks(ExperimentConfig(**values)) == ("a.b:c",)  # type: ignore[arg-type]
    write(NodeConfig(name="a", identity=provisioning.OWN, tasks=("a.b:c",)), tmp_path / "node.toml")
    node = load(NodeConfig, [tmp_path / "node.toml"], environ={})
    node.check_task(TaskSection(name="a.b:c"))
    node.check_task(TaskSection())
    with pytest.raises(ConfigurationError, match=r'tasks = \["a\.b:c", "a\.b:d"\]'):
        node.check_task(TaskSection(name="a.b:d"))


def test_up_and_pack_name_the_runs_own_families() -> None:
    values = {"privacy": {"sigma": 2.0}, "task": {"reasoning": {"families": ["sort", "own:a.b"]}}}
    assert provisioning.own_tasks(ExperimentConfig(**values)) == ("own:a.b",)  # type: ignore[arg-type]


def test_the_environment_makes_no_daemon_fail(home: Path) -> None:
    point = {VARIABLE: "round_start=kill"}
    code, said = called(home, "run", "--config", "node.toml", **point)
    assert (code, said.count("\n"), "unset it, or add --i-am-testing" in said) == (78, 1, True)
    code, said = called(home, "run", "--config", "node.toml", "--i-am-testing", **point)
    assert "evil:make_task" in said, "the power check: it goes on to the next question"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="core dumps are asked of Linux here"
)
def test_no_core_dump_holds_a_daemons_memory() -> None:
    ask = (
        "import json, resource, ctypes; print(json.dumps([ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), "
    )
    ask += "resource.getrlimit(resource.RLIMIT_CORE)[0] == 0]))"
    for before, found in (
        ("pass", [1, None]),
        ("from node import process; process.hide()", [0, True]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"{before}\n{ask}"], capture_output=True, text=True, check=True
        )
        dumpable, limited = json.loads(done.stdout)
        assert [dumpable, found[1] and limited] == found
    assert process.PR_SET_DUMPABLE == 4
