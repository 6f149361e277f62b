"""Regression: a number of a table, learned in units of `task.target` and scored in its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from node import data, tasks
from node.config import DataSection, ExperimentConfig, RunConfig
from node.data import partition
from node.experiments import local_cluster
from node.task import Task, views
from peer.errors import ConfigurationError, DataError

TASK = {
    "name": "regression",
    "label": "price",
    "target": [300.0, 100.0],
    "features": {"size": [80, 20], "city": {"kind": "category", "values": ["Bonn", "Ulm"]}},
}
NONE = {"mode": "none", "batch": 32}


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    """price = 300 + 3·(size − 80) + 40 in Bonn, and noise of 10."""
    rng = np.random.default_rng(4)
    lines = ["city,price,size"]
    for _ in range(400):
        size, city = rng.normal(80, 20), rng.choice(("Bonn", "Ulm"))
        price = 300 + 3 * (size - 80) + 40 * (city == "Bonn") + rng.normal(0, 10)
        lines.append(f"{city},{price:.2f},{size:.2f}")
    path = tmp_path / "houses.csv"
    path.write_text("\n".join(lines))
    return path


def own(path: Path, **task: object) -> Task:
    run = RunConfig.model_validate({"privacy": NONE, "task": {**TASK, "data": "own", **task}})
    return tasks.make(run, DataSection(path=path, test=path, name="houses"))


def test_a_model_has_one_output_and_its_scores_have_the_labels_unit(houses: Path) -> None:
    task = own(houses)
    assert [shape for _, shape in task.layout.fields] == [(1, 3), (1,)]
    x = torch.tensor([0.6, 0.4, 0.0, 0.0])  # what the prices were made by
    measured = task.evaluate(x)
    assert [metric.name for metric in task.metrics] == ["r2", "mse", "mae", "loss"]
    assert measured["mse"] == pytest.approx(100, rel=0.15)
    assert measured["mae"] == pytest.approx(8, rel=0.15)
    assert measured["loss"] == pytest.approx(measured["mse"] / 100**2)
    assert measured["r2"] > 0.97
    assert task.inputs["target"] == "price (300.0, 100.0)"
    assert "classes" not in task.inputs


def test_the_loss_of_a_batch_is_the_mean_of_its_examples(houses: Path) -> None:
    task = own(houses, model="mlp", hidden=3)
    parameters = views(task.layout, task.initial_parameters(1))
    batch = task.batch(torch.arange(7))
    each = [task.loss(parameters, (x, y)) for x, y in zip(*batch, strict=True)]
    assert task.mean_loss(parameters, batch) == pytest.approx(float(torch.stack(each).mean()))


@pytest.mark.parametrize("mode", [NONE, {"sigma": 0.5, "rate": 0.1, "batch": 10, "delta": 1e-3}])
def test_a_public_table_is_divided_and_learned(
    houses: Path, tmp_path: Path, mode: dict[str, object]
) -> None:
    config = ExperimentConfig.model_validate({
        "task": {**TASK, "data": "file", "path": houses},
        "algorithm": {"name": "d-psgd", "lr": 0.2},
        "train": {"rounds": 60, "evaluate_every": 0},
        "privacy": mode,
        "experiment": {"nodes": 2},
    })  # fmt: skip
    train, test = data.public_sets(config.task)
    assert (len(train), len(test)) == (320, 80)
    assert [len(part) for part in partition.divide(config.experiment, train)] == [160, 160]
    summary = local_cluster.simulate(config, tmp_path / "run", quiet=True)
    assert summary.headline == "r2"
    worst = summary.task_metrics["r2"].worst
    assert worst is not None
    assert worst > 0.9


def test_prices_that_are_none_are_bad_rows(houses: Path) -> None:
    text = houses.read_text(encoding="utf-8")
    houses.write_text(text + "\nUlm,,70\nUlm,cheap,70\nUlm,9e9,70\n", encoding="utf-8")
    assert own(houses, bad_rows=0.01).num_examples == 400
    with pytest.raises(DataError, match="column 'price'"):
        own(houses)


def test_it_learns_tables_only() -> None:
    run = RunConfig.model_validate({"privacy": NONE, "task": {**TASK, "data": "digits"}})
    with pytest.raises(ConfigurationError, match="learns a column of a table"):
        tasks.make(run, np.arange(10))


def test_neighbors_are_not_valued_by_an_accuracy(houses: Path) -> None:
    run = RunConfig.model_validate({
        "privacy": NONE,
        "algorithm": {"name": "ross", "value": "accuracy"},
        "task": {**TASK, "data": "own"},
    })  # fmt: skip
    with pytest.raises(ConfigurationError, match=r'set algorithm\.value = "neg_loss"'):
        tasks.make(run, DataSection(path=houses, name="houses"))


@pytest.mark.parametrize("task", [{**TASK, "target": None}, {**TASK, "name": "classification"}])
def test_target_and_regression_belong_together(task: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match='belongs to name = "regression"'):
        RunConfig.model_validate({"privacy": NONE, "task": task})
