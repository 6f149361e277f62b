"""Commands run as users run them: through `main`, with arguments, output and exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kit.command import Call, Result
from node.cli.main import main

EXAMPLE = """\
[run]
name = "test"
[task]
data = "digits"
[train]
rounds = 2
[privacy]
epsilon = 8.0
delta = 1e-3
rate = 0.25
batch = 90
[experiment]
nodes = 3
seed = 1
"""


@pytest.fixture
def peerpoise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["peerpoise", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXAMPLE)
    return path
