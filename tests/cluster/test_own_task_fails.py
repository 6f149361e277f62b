"""Real daemons with an own task that goes wrong after releases were made: nothing that was paid for
is lost.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from kit.clusters import debits, events

TASK = """
import torch
from peer.message import Layout

class Task:
    layout = Layout((("w", (4,)),))

    def __init__(self, rows):
        self.x, self.tests = torch.linspace(-1, 1, 2000)[rows], 0

    @property
    def num_examples(self):
        return len(self.x)

    def initial_parameters(self, seed):
        return torch.zeros(4)

    def batch(self, rows):
        if GONE and self.tests >= GONE:
            raise OSError("the drive with the scans of Jane Doe is gone")
        return (self.x[rows],)

    def loss(self, parameters, example):
        return (parameters["w"].sum() - example[0]) ** 2

    def mean_loss(self, parameters, batch):
        return ((parameters["w"].sum() - batch[0]) ** 2).mean()

    def evaluate(self, x):
        self.tests += 1
        return {"loss": 1.0 if self.tests < TESTS else [1.0]}

def make_task(run, data):
    return Task(torch.from_numpy(data))
"""
RUN = """
[train]
rounds = 6
evaluate_every = 2
checkpoint_every = 4
[algorithm]
name = "d-psgd"
lr = 0.1
[privacy]
mode = "strict"
sigma = 2.0
delta = 1e-3
rate = 0.1
batch = 50
[experiment]
nodes = 2
partition = "iid"
"""
Up = Callable[..., tuple[int, str, list[Path]]]


@pytest.fixture
def up(tmp_path: Path) -> Up:
    def start(*, gone: int = 0, tests: int = 99) -> tuple[int, str, list[Path]]:
        code = TASK.replace("GONE", str(gone)).replace("TESTS", str(tests))
        (tmp_path / "mine.py").write_text(code, encoding="utf-8")
        (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
        words = ["up", "run.toml", "--task", "./mine.py:make_task", "--folder", "out", "--json"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "peerpoise", *words],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            check=False,
        )
        return (
            done.returncode,
            done.stderr.decode(),
            [tmp_path / "out" / "nodes" / name for name in ("n0", "n1")],
        )

    return start


@pytest.mark.cluster
def test_an_evaluation_that_breaks_costs_the_metrics_only(up: Up) -> None:
    code, output, homes = up(tests=3)
    assert code == 0, output
    for home in homes:
        order = [
            event["event"]
            for event in events(home)
            if event["event"] in ("checkpoint", "test", "warning")
        ]
        assert order == ["test", "checkpoint", "warning", "checkpoint"], (
            "once before, in round 2, and no more"
        )
        summary = json.loads((home / "summary.json").read_text(encoding="utf-8"))
        assert (summary["complete"], summary["task_metrics"]) == (True, {})
        assert "warning: task.name = " in (home / "daemon.log").read_text(encoding="utf-8")
        with safe_open(home / "model.safetensors", "pt") as model:
            assert model.get_tensor("w").isfinite().all()


@pytest.mark.cluster
def test_code_that_raises_in_a_round_costs_that_round_only(up: Up) -> None:
    code, output, homes = up(gone=2)
    assert code == 78, output
    sentence = (
        "batch raised OSError: the drive with the scans of Jane Doe is gone (mine.py, line 20)."
    )
    assert f"{sentence} The traceback is in " in output
    for file in re.findall(r"The traceback is in (\S+)\.$", output, re.MULTILINE):
        assert 'raise OSError("the drive' in Path(file).read_text(encoding="utf-8")
        Path(file).unlink()
    for home in homes:
        journal = (home / "journal.jsonl").read_text(encoding="utf-8")
        assert "Jane Doe" not in journal, "what an exception says may be private"
        assert {t for t, _ in debits(home)} >= {0, 1}
        assert [event["round"] for event in events(home, "checkpoint")] == [1], (
            "not one that is due"
        )
