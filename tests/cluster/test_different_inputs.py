"""Hosts that feed the model different things don't train together: real daemons, own data, mutual
TLS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit import free_ports
from node.config import ExperimentConfig
from node.experiments.hosts import pack

SECONDS = 90


def packed(folder: Path, **task: object) -> list[Path]:
    """Two hosts: one has its pictures as uint8, the other the same kind as floats from 0 to 1."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8)).astype(np.uint8), np.arange(60) % 10
    np.savez(folder / "a.npz", x=x, y=y)
    np.savez(folder / "b.npz", x=x.astype(np.float32) / 255, y=y)
    config = ExperimentConfig.model_validate(
        {
            "task": {"data": "own", "model": "softmax", **task},
            "train": {"rounds": 2},
            "algorithm": {"name": "d-psgd"},
            "privacy": {"mode": "none", "batch": 20},
            "start": {"timeout_s": 15},
        }
    )
    hosts = [f"{name}=127.0.0.1:{port}" for name, port in zip("ab", free_ports(2), strict=True)]
    data = [f"{name}=ward-{name}:{folder / name}.npz" for name in "ab"]
    result = pack(config, hosts, data, folder / "packed")
    return [Path(home) for home in result["hosts"].values()]


def run(homes: list[Path]) -> list[tuple[int, str]]:
    """(exit code, what it said) of each."""
    processes = []
    for home in homes:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(home / "state-home")}
        command = [sys.executable, "-m", "peerpoise", "run", "--config", str(home / "node.toml")]
        processes.append(
            subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, encoding="utf-8")
        )
    said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.cluster
def test_bytes_and_floats_refuse_each_other_in_a_sentence(tmp_path: Path) -> None:
    for code, text in run(packed(tmp_path)):
        assert code == 69, text
        assert "feed their models different things" in text
        assert "task.value_range" in text


@pytest.mark.cluster
def test_a_range_that_both_keep_lets_them_train(tmp_path: Path) -> None:
    assert [code for code, _ in run(packed(tmp_path, value_range=[0, 1]))] == [0, 0]
