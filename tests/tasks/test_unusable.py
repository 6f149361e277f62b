"""Records without a finite loss are told to the data's owner, on standard error, and nowhere
else.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from node.config import ExperimentConfig
from node.experiments.in_process import simulate
from node.learning.unusable import UnusableRecords

TASK = '''
import torch
from torch.nn import functional

from node.task import views
from peer.message import Layout


class Masked:
    """The mean over what was measured; of one record in eight nothing was."""

    layout = Layout((("w", (2, 3)),))

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2000, 4, 3, generator=generator)[rows]
        self.mask = torch.ones(2000, 4, dtype=torch.int64)[rows]
        self.mask[::EVERY] = 0
        self.y = (self.x.mean((1, 2)) > 0).long()

    @property
    def num_examples(self):
        return len(self.x)

    def initial_parameters(self, seed):
        return torch.zeros(6)

    def batch(self, rows):
        return self.x[rows], self.mask[rows], self.y[rows]

    def loss(self, parameters, example):
        x, mask, y = example
        mean = (x * mask.unsqueeze(-1)).sum(-2) / mask.sum(-1, keepdim=True)
        return functional.cross_entropy(mean @ parameters["w"].t(), y)

    mean_loss = loss

    def evaluate(self, x, yield_point=lambda: None):
        return {}


def make_task(run, data):
    return Masked(torch.from_numpy(data))
'''


def experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, **privacy: object
) -> ExperimentConfig:
    module = f"masked_{every}_{privacy['mode']}"
    (tmp_path / f"{module}.py").write_text(TASK.replace("EVERY", str(every)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    values = {
        "task": {"name": f"{module}:make_task"},
        "train": {"rounds": 3},
        "algorithm": {"name": "dpdl", "lr": 0.1},
        "privacy": {"rate": 0.95, "batch": 50, **privacy},  # every record is drawn sooner or later
        "experiment": {"nodes": 2, "partition": "iid"},
    }
    return ExperimentConfig.model_validate(values)


@pytest.mark.parametrize("mode", ["strict", "none"])
def test_the_owner_is_told_and_nobody_else(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    privacy = {"mode": mode} | ({"sigma": 1.0, "delta": 1e-3} if mode == "strict" else {})
    summary = simulate(experiment(tmp_path, monkeypatch, 8, **privacy), tmp_path / "run")
    told = capsys.readouterr().err
    assert "n0, round 0: the loss or gradient of" in told
    assert "records (row" in told
    assert "empty masks" in told
    journal = (tmp_path / "run" / "nodes" / "n0" / "journal.jsonl").read_text(encoding="utf-8")
    assert "masks" not in journal
    assert any(json.loads(line)["event"] == "backend" for line in journal.splitlines()) == (
        mode == "strict"
    )
    if mode == "strict":
        assert not summary.diverged
        assert not summary.loss_not_finite
    else:
        assert summary.diverged == ["n0", "n1"]
        assert summary.loss_not_finite == ["n0", "n1"]


def test_nothing_is_told_where_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(
        experiment(tmp_path, monkeypatch, 10**9, mode="strict", sigma=1.0, delta=1e-3),
        tmp_path / "run",
    )
    # row 0 alone has nothing measured
    assert capsys.readouterr().err.count("1 record (row 0)") == 2


def test_it_is_said_again_when_their_number_has_doubled() -> None:
    sentences: list[str] = []
    unusable = UnusableRecords("n0", sentences.append)
    for t, rows in enumerate([[3], [3], [4], [5], [6, 7]]):
        unusable(t, torch.tensor(rows))
    assert [it.split(":")[0] for it in sentences] == ["n0, round 0", "n0, round 2", "n0, round 4"]
    assert "5 records (row 3, 4, 5, 6, 7)" in sentences[-1]


def test_a_model_that_diverges_is_not_the_data_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(tmp_path, monkeypatch, 7, mode="none")
    values = config.model_dump()
    values["task"]["name"] = "classification"
    values["task"]["data"] = "digits"
    values["algorithm"]["lr"] = 1e38
    summary = simulate(ExperimentConfig.model_validate(values), tmp_path / "run")
    assert summary.diverged
    assert not summary.loss_not_finite
    assert "masks" not in capsys.readouterr().err
