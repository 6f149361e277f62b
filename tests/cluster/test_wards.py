"""docs/tables.md from start to end: three real daemons, three tables as three offices write them,
against training on all rows in one place.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import peerpoise
from kit import free_ports, wards
from node import data
from node.config import ExperimentConfig, RunConfig, load
from node.data import Examples
from node.experiments import run_folder
from node.experiments.hosts import pack
from node.maths.scores import auc

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
SECONDS = 120
STEPS = 500


def run_of_the_page(folder: Path, *settings: str) -> ExperimentConfig:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "tables.toml").write_text(text, encoding="utf-8")
    return load(ExperimentConfig, [folder / "tables.toml"], settings, environ={})


def packed(folder: Path, config: ExperimentConfig) -> dict[str, Path]:
    ports = dict(zip(wards.OFFICES, free_ports(3), strict=True))
    hosts = [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
    own = [f"{name}=wards-{name}:{folder / name}.csv" for name in ports]
    tests = [f"{name}:{folder / name}-test.csv" for name in ports]
    result = pack(config, hosts, own, folder / "packed", tests=tests)
    return {name: Path(home) for name, home in result["hosts"].items()}


def learn(homes: dict[str, Path]) -> None:
    processes = []
    for home in homes.values():
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(home / "state-home")}
        command = [sys.executable, "-m", "peerpoise", "run", "--config", str(home / "node.toml")]
        processes.append(
            subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, encoding="utf-8")
        )
    for process in processes:
        _, text = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, text


def pooled_auc(run: RunConfig, folder: Path) -> dict[str, float]:
    """Of logistic regression on the rows of all, by name of the test set."""

    def inputs(name: str) -> Examples:
        return data.own(folder / f"{name}.csv", run.task)

    train = [inputs(name) for name in wards.OFFICES]
    x, y = torch.cat([it.x.flatten(1) for it in train]), torch.cat([it.y for it in train])
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    for _ in range(STEPS):
        margin = x @ w[:-1] + w[-1]
        loss = functional.binary_cross_entropy_with_logits(margin, y.float())
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - gradient).detach().requires_grad_()
    scores = {}
    for name in wards.OFFICES:
        test = inputs(f"{name}-test")
        margin = test.x.flatten(1) @ w[:-1].detach()
        scores[name] = auc(margin.double().numpy(), np.asarray(test.y) == 1)
    return scores


@pytest.mark.cluster
@pytest.mark.slow
def test_three_tables_learn_one_model_as_well_as_in_one_place(tmp_path: Path) -> None:
    wards.write(tmp_path)
    config = run_of_the_page(tmp_path, "train.rounds=25", "train.evaluate_every=0")
    homes = packed(tmp_path, config)
    learn(homes)
    summaries = {
        name: json.loads((home / "state" / "summary.json").read_text())
        for name, home in homes.items()
    }
    assert {it["headline"] for it in summaries.values()} == {"auc"}
    reached = {name: it["task_metrics"]["auc"]["mean"] for name, it in summaries.items()}
    for name, best in pooled_auc(config.run_config, tmp_path).items():
        assert best > 0.78, "there is something to learn"
        assert reached[name] > best - 0.03, (name, reached[name], best)
    home = homes["a"] / "state"
    settings = homes["a"] / "node.toml"  # as it is now, not as the daemon ran
    settings.write_text(settings.read_text().replace("test_public = false", "test_public = true"))
    assert "test_public = true" in settings.read_text()
    run_folder.export(home, home / "model.safetensors", tmp_path / "a.safetensors")
    model = peerpoise.load(tmp_path / "a.safetensors")
    assert not model.info.metrics, "figures of a private test set stay on its host"
    assert "ε_total ≤ " in model.info.privacy
