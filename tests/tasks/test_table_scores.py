"""Scores of tables against scikit-learn, or where it is not installed against their definitions."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
import torch

from node.maths import scores
from node.tasks.goals import Classes, Number, TableClasses, TwoClasses

RANDOM = np.random.default_rng(8)


def naive_auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Over all pairs, as it is defined."""
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_the_share_of_pairs_in_the_right_order(ties: bool) -> None:
    values = RANDOM.normal(size=60)
    values = values.round(0) if ties else values
    positive = RANDOM.random(60) < 0.3
    assert scores.auc(values, positive) == pytest.approx(naive_auc(values, positive))
    assert scores.auc(-values, positive) == pytest.approx(1 - scores.auc(values, positive))
    assert scores.auc(np.zeros(60), positive) == 0.5


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="pip install 'peerpoise[demo]'")
    logits = torch.from_numpy(RANDOM.normal(size=(200, 3)))
    y = torch.from_numpy(RANDOM.integers(0, 3, 200))
    probabilities = logits.softmax(1).numpy()
    measured = TableClasses().measure(logits, y)
    assert measured == pytest.approx({
        "accuracy": metrics.accuracy_score(y, logits.argmax(1)),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, logits.argmax(1)),
        "auc": metrics.roc_auc_score(y, probabilities, multi_class="ovr"),
    })  # fmt: skip
    two = TwoClasses().measure(logits[:, :2], y.clamp(max=1))
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    assert two["auc"] == pytest.approx(metrics.roc_auc_score(y.clamp(max=1), margin))
    assert float(Classes().loss(logits, y)) == pytest.approx(metrics.log_loss(y, probabilities))
    number = Number(5.0, 2.0).measure(logits[:, :1], logits[:, 1])
    truth, predicted = logits[:, 1] * 2 + 5, logits[:, 0] * 2 + 5
    assert number == pytest.approx({
        "r2": metrics.r2_score(truth, predicted),
        "mse": metrics.mean_squared_error(truth, predicted),
        "mae": metrics.mean_absolute_error(truth, predicted),
    })  # fmt: skip


def test_calibration_is_the_distance_of_what_was_said_from_what_came() -> None:
    """0.85 was said of four, of whom two came; 0.25 of six, of whom none came."""
    said = np.array([0.85] * 4 + [0.25] * 6)
    came = np.array([True, True, False, False] + [False] * 6)
    assert scores.calibration_error(said, came) == pytest.approx((4 * 0.35 + 6 * 0.25) / 10)
    assert scores.calibration_error(came.astype(float), came) == 0


def test_base_rate_and_two_classes() -> None:
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 1.0], [0.0, -3.0]])
    measured = TwoClasses().measure(logits, torch.tensor([1, 0, 0, 0]))
    assert (measured["base_rate"], measured["auc"], measured["accuracy"]) == (0.25, 1.0, 0.75)
    assert measured["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)


def test_what_is_not_defined_is_nan() -> None:
    one = np.zeros(4, bool)
    assert isnan(scores.auc(np.arange(4.0), one))
    assert isnan(scores.auc(np.full(4, np.nan), np.arange(4) > 1))
    assert isnan(scores.calibration_error(np.full(4, np.nan), one))
    assert isnan(scores.mean_auc(np.full((4, 3), 1 / 3), np.array([0, 0, 1, 1])))
    assert isnan(scores.r2(np.arange(4.0), np.ones(4)))


def test_each_goal_measures_what_it_declares_the_headline_first() -> None:
    outputs, y = torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 1, 1])
    headlines = {}
    for goal in (Classes(), TableClasses(), TwoClasses()):
        names = {metric.name for metric in goal.metrics}
        assert {*goal.measure(outputs, y), "loss"} == names
        headlines[type(goal).__name__] = goal.metrics[0].name
    number = Number(0.0, 1.0)
    assert {*number.measure(outputs[:, :1], y.float()), "loss"} == {m.name for m in number.metrics}
    assert headlines == {"Classes": "accuracy", "TableClasses": "accuracy", "TwoClasses": "auc"}
    assert number.metrics[0].name == "r2"
