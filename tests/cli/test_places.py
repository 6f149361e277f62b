"""Machines without a home folder, with other folders for temporary files, or with another program's
environment.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kit.command import Call
from node.config import BudgetSection
from peer.errors import ConfigurationError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user id has no entry among the users, as in containers."""

    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in (
        "HOME",
        "XDG_STATE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "STATE_DIRECTORY",
        "PEERPOISE_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.fixture
def packed(peerpoise: Call, experiment: Path, tmp_path: Path) -> Path:
    digits = load_digits()
    np.savez(tmp_path / "ward.npz", x=(digits.images / 16).astype(np.float32), y=digits.target)
    words = (
        "--host",
        "a=127.0.0.1:7462",
        "--data",
        f"a=ward:{tmp_path / 'ward.npz'}",
        "--out",
        tmp_path / "packed",
    )
    settings = ("--set", "task.data=own", "--set", "start.timeout_s=0.2")
    result = peerpoise("pack", experiment, *settings, *words)
    assert result.code == 0, result.err
    return tmp_path / "packed" / "a"


def test_a_ledger_without_a_home_is_a_sentence(
    homeless: None, peerpoise: Call, packed: Path
) -> None:
    result = peerpoise("doctor", "--config", packed / "node.toml", "--json")
    assert "set budget.ledger_dir in the node's file, or HOME" in result.out
    assert "own: 1797 examples" in result.out, "the other findings are there"
    with pytest.raises(
        ConfigurationError, match=r"set budget\.ledger_dir in the node's file, or HOME\."
    ):
        BudgetSection().folder  # noqa: B018


def test_with_a_ledger_folder_no_home_is_needed(
    homeless: None, peerpoise: Call, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BudgetSection(ledger_dir=Path("ledger")).folder == Path("ledger")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib")
    assert BudgetSection().folder == Path("/var/lib/peerpoise/ledger")
    monkeypatch.delenv("XDG_STATE_HOME")
    result = peerpoise(
        "doctor", "--config", packed / "node.toml", "--set", "budget.ledger_dir=ledger", "--json"
    )
    assert result.code == 0, result.out


def test_a_node_file_is_looked_for_without_a_home(
    homeless: None, peerpoise: Call, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = peerpoise("run")
    assert (result.code, "There is no node file; name one with --config" in result.err) == (
        78,
        True,
    )
    monkeypatch.chdir(packed)
    assert "set budget.ledger_dir" in peerpoise("run").err, "node.toml of this folder was read"


@pytest.mark.parametrize(
    "setting", ["data.path=~/ward.npz", "data.test=~/test.npz", "run=~/run.toml"]
)
def test_a_path_from_home_without_one_is_a_sentence(
    homeless: None, peerpoise: Call, packed: Path, setting: str
) -> None:
    result = peerpoise("run", "--config", packed / "node.toml", "--set", setting)
    assert result.code == 78
    assert (
        result.err
        == "peerpoise: This user has no home folder: set HOME, or write paths without ~.\n"
    )


@pytest.mark.cluster
@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.usefixtures("real_starts")
def test_the_environment_is_another_programs(experiment: Path, tmp_path: Path, there: bool) -> None:
    """A service that exports metrics of several processes, with long paths, started this one."""
    shared, long = tmp_path / "prometheus", tmp_path / ("x" * 150)
    if there:
        shared.mkdir()
        long.mkdir()
    environ = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "TMPDIR": str(long),
        "OMP_NUM_THREADS": "1",
    }
    environ.pop("XDG_RUNTIME_DIR", None)
    words = [
        sys.executable,
        "-m",
        "peerpoise",
        "up",
        str(experiment),
        "--folder",
        str(tmp_path / "out"),
    ]
    options = ("experiment.nodes=2", "privacy.epsilon=", "privacy.sigma=2", "train.rounds=1")
    done = subprocess.run(
        [*words, *(word for each in options for word in ("--set", each))],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not there or (list(shared.iterdir()), list(long.iterdir())) == ([], [])
    for name in ("n0", "n1"):
        log = (tmp_path / "out" / "nodes" / name / "daemon.log").read_text(encoding="utf-8")
        assert "Error" not in log
