"""docs/own-task.md: its example is written to a file, named by --task, and trained by the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from node import tasks
from node.config import RunConfig
from peer.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "own-task.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 60
    (tmp_path / "slope.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def peerpoise(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "node.cli", *words]
    return subprocess.run(command, env=environ, cwd=path, capture_output=True, text=True, check=False)


def test_the_pages_example_learns(example: Path) -> None:
    toml = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (example / "slope.toml").write_text(toml)
    done = peerpoise("simulate", "slope.toml", "--task", "slope:make_task", "--folder", "out", "--json", path=example)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["task_metrics"]["error"]["mean"] < 0.2
    assert summary["algorithm_metrics"]["averaged_model"]["error"] < 0.2


def run(name: str) -> RunConfig:
    return RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"name": name}})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:make", "can't be imported: No module named"),
        ("slope:none", "slope has no function 'none'"),
        ("slope:SIZE", "slope has no function 'SIZE'"),
        ("slope:Slope.start", "has no function"),
        ("builtins:print", "made something without layout, examples"),
        ("slope", "your own as package.module:function"),
    ],
)
def test_what_is_no_task_is_one_sentence(example: Path, name: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        tasks.make(run(name), np.arange(5))
