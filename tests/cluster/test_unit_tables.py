"""Three real daemons with three tables of visits, by patients; and what they leave behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit import free_ports, wards
from kit.wards import OFFICES, Office
from node.config import ExperimentConfig, load
from node.experiments import run_folder
from node.experiments.hosts import pack

RUN = """\
[run]
name = "visits"
[task]
data = "own"
label = "died"
labels = ["no", "yes"]
unit = "patient"
rows_per_unit = 2
[task.features]
age = [60, 15]
sex = { kind = "category", values = ["f", "m"] }
[algorithm]
name = "d-psgd"
lr = 0.5
[topology]
kind = "full"
[train]
rounds = 6
evaluate_every = 3
[privacy]
sigma = 2.0
rate = 0.2
batch = 20
"""
WHOM = "add/remove all rows of one patient"
SECONDS = 120


def tables(folder: Path) -> None:
    """Each patient has one to five rows at one of the hosts."""
    rng = np.random.default_rng(0)
    for name, office in OFFICES.items():
        rows = wards.patients(rng, 300, office.wards)
        for k, row in enumerate(rows):
            row["patient"] = f"Nobody-{name}-{k % 100 if k < 200 else k % 30}"
        wider = Office((*office.columns, "patient"), office.wards, office.separator, office.decimal)
        wards.save(folder / f"{name}.csv", rows, wider)


def learn(home: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(home / "state-home")}
    command = [sys.executable, "-m", "peerpoise", "run", "--config", str(home / "node.toml")]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, encoding="utf-8")


@pytest.mark.cluster
def test_three_hosts_learn_by_patients(tmp_path: Path) -> None:
    tables(tmp_path)
    (tmp_path / "run.toml").write_text(RUN)
    config = load(ExperimentConfig, [tmp_path / "run.toml"], environ={})
    hosts = [f"{name}=127.0.0.1:{port}" for name, port in zip(OFFICES, free_ports(3), strict=True)]
    own = [f"{name}=visits-{name}:{tmp_path / name}.csv" for name in OFFICES]
    homes = {
        name: Path(home) for name, home in pack(config, hosts, own, tmp_path / "p")["hosts"].items()
    }
    processes = [learn(home) for home in homes.values()]
    said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    for home, text in zip(homes.values(), said, strict=True):
        assert WHOM in text
        left = [file for file in home.rglob("*") if file.is_file()]
        assert not [file for file in left if b"Nobody" in file.read_bytes()]  # no patient's name
        found = json.loads((home / "state" / "summary.json").read_text())
        assert (found["privacy"]["adjacency"], found["privacy"]["unit"]) == (WHOM, "patient")
        assert 0 < found["privacy"]["epsilon"]["total"] < 10
        (file,) = home.rglob("*.sqlite")
        with sqlite3.connect(file) as db:
            modes = {mode for (mode,) in db.execute("SELECT mode FROM debit")}
        db.close()
        assert modes == {"strict per patient"}
    home = homes["a"] / "state"
    run_folder.export(home, home / "model.safetensors", tmp_path / "a.safetensors")
    assert WHOM in (tmp_path / "a.md").read_text()  # the model card
