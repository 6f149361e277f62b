"""Figures are declared once; whatever is not declared stays in the node."""

from collections.abc import Sequence

import pytest

from node.algorithms import ALGORITHMS, find
from node.figures import (
    COMMON_METRICS,
    Diagnostic,
    Metric,
    check_declared,
    document,
    headline,
    headline_text,
)
from node.tasks.goals import Classes, Number, TableClasses, TwoClasses

GOALS = (Classes, Number, TableClasses, TwoClasses)
GOLDEN = """
badam: cycle block step
cga: cosine multiplier
deca: cycle block step
dpdl: calibration cosine
fgrpo: weight gain convicted reward rollouts_exact frac_reward_zero_std entropy kl clip_ratio_low clip_ratio_high tokens completion_length completions_clipped_ratio grad_norm mismatch generated_per_second trained_per_second scorer_failures audit_tokens rolled_back
grpo: reward rollouts_exact frac_reward_zero_std entropy kl clip_ratio_low clip_ratio_high tokens completion_length completions_clipped_ratio grad_norm mismatch generated_per_second trained_per_second scorer_failures
pdsl: weight shapley
ross: weight shapley
sapo: taken clip_ratio reward rollouts_exact frac_reward_zero_std entropy kl clip_ratio_low clip_ratio_high tokens completion_length completions_clipped_ratio grad_norm mismatch generated_per_second trained_per_second scorer_failures
"""


def test_golden_list_of_diagnostics():
    """A new one is a decision about privacy: change this list only after asking what it tells
    about private data.
    """
    declared = {name: [it.name for it in find(name).DIAGNOSTICS] for name in sorted(ALGORITHMS)}
    lines = [f"{name}: {' '.join(names)}" for name, names in declared.items() if names]
    assert lines == GOLDEN.split("\n")[1:-1]


def test_golden_list_of_metrics():
    """Those of a task that declares none; each is measured on the public test set."""
    assert [metric.name for metric in COMMON_METRICS] == ["accuracy", "f1", "perplexity", "loss"]


GOLDEN_METRICS = """
Classes: accuracy loss
Number: r2 mse mae loss
TableClasses: accuracy balanced_accuracy auc loss
TwoClasses: auc balanced_accuracy accuracy loss base_rate calibration_error
"""


def test_golden_list_of_metrics_of_our_goals():
    """Each is measured on a test set, and shown to others only if that is public."""
    lines = [f"{goal.__name__}: {' '.join(it.name for it in goal.metrics)}" for goal in GOALS]
    assert lines == GOLDEN_METRICS.split("\n")[1:-1]
    assert all(metric.help.endswith(".") for goal in GOALS for metric in goal.metrics)


def test_each_declaration_says_what_it_is_and_has_a_name_of_its_own():
    every: list[Sequence[Metric | Diagnostic]] = [COMMON_METRICS]
    every += [find(name).DIAGNOSTICS for name in sorted(ALGORITHMS)]
    for declared in every:
        assert all(it.help.endswith(".") for it in declared)
        assert len({it.name for it in declared}) == len(declared)


def test_what_is_not_declared_is_a_bug():
    check_declared(["loss", "accuracy"], COMMON_METRICS)
    with pytest.raises(ValueError, match="train_loss is not declared"):
        check_declared(["loss", "train_loss"], COMMON_METRICS)


def test_the_headline_is_the_first_declared_metric_that_was_measured():
    assert headline(COMMON_METRICS, {}) is None
    assert headline_text(COMMON_METRICS, {}) == ""
    assert headline_text(COMMON_METRICS, {"loss": 2.0, "accuracy": 0.831}) == "accuracy 83.1%"
    assert headline_text(COMMON_METRICS, {"loss": 2.0, "perplexity": 12.5}) == "perplexity 12.5"
    assert headline_text(COMMON_METRICS, {"loss": float("nan")}) == "loss n/a"


def test_a_declaration_comes_back_from_a_document():
    assert [Metric(**it) for it in document(COMMON_METRICS)] == [*COMMON_METRICS]
