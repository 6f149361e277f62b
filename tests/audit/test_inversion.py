"""What a neighbor that chooses its model gets back of the images behind an answer: all of them without
privacy, none at ε ≤ 8. The full tables: docs/results/privacy-attacks.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kit import ROOT
from node.audit.inversion import RECOVERED, Inversion, correlations, invert
from node.audit.modes import in_mode, modes_of
from node.audit.traps import rows_of, trap
from node.config import ExperimentConfig, load
from node.experiments.resolve import ResolvedRun, resolve
from node.maths.clipping import mean_gradient
from node.privacy.accountant import Mode
from node.tasks import make
from peer.errors import ConfigurationError

EXAMPLE = ROOT / "deploy" / "examples" / "quickstart.toml"
SIGMA = 0.76
"""Of 4 rounds at ε_total ≤ 8."""


@lru_cache
def run(mode: Mode, *settings: str) -> ResolvedRun:
    few = ["task.model=mlp", "train.rounds=4", *settings]
    config = load(ExperimentConfig, [Path(EXAMPLE)], few, environ={})
    privacy = config.privacy.model_copy(update={"epsilon": None, "sigma": SIGMA})
    return resolve(in_mode(config.model_copy(update={"privacy": privacy}), mode))


@pytest.mark.parametrize("batch", [1, 8])
def test_without_noise_a_trap_gets_the_images_back(batch: int) -> None:
    result = invert(run("none"), "trap", batch=batch, records=32, seed=1)
    assert (result.records, result.rounds) == (32, 1)
    assert result.share >= 0.8
    assert result.correlation > RECOVERED
    assert result.chance < 0.9


def test_without_noise_and_without_a_trap_it_takes_some_steps_more() -> None:
    result = invert(run("none"), "optimized", records=4, seed=1, steps=80)
    assert result.share >= 0.8


@pytest.mark.parametrize("batch", [1, 8])
def test_in_mode_strict_a_trap_gets_nothing(batch: int) -> None:
    result = invert(run("strict"), "trap", batch=batch, records=24, seed=1)
    assert run("strict").plan.epsilon == pytest.approx(8.0, abs=0.1)
    at_chance(result)


def test_in_mode_strict_nor_do_steps() -> None:
    at_chance(invert(run("strict"), "optimized", records=8, seed=1, steps=10))


def at_chance(result: Inversion) -> None:
    assert result.rounds == 4
    assert result.recovered == 0
    deviation = (1 / (6 * result.records)) ** 0.5
    """Of the statistic of Mann and Whitney with equally many of both."""
    assert abs(result.auc - 0.5) < 3 * deviation
    assert abs(result.correlation - result.chance) < 0.15


def test_power_with_little_noise_strict_is_no_defense() -> None:
    """It is the noise, not what else the mode does."""
    bare = run("strict", "privacy.rate=1.0")
    privacy = bare.run.privacy.model_copy(update={"sigma": 1e-3})
    changed = bare.run.model_copy(update={"privacy": privacy})
    loud = replace(bare, run=changed, plan=replace(bare.plan, run=changed))
    assert invert(loud, "trap", records=8, seed=1).share >= 0.8


def test_a_unit_that_one_record_wakes_has_it_in_its_row() -> None:
    resolved = run("none")
    task = make(resolved.run, resolved.parts["n0"])
    images = task.batch(torch.arange(task.num_examples))[0]
    x = trap(task, images, 1, seed=3)
    gradient = mean_gradient(task, x, torch.tensor([7]))
    [row] = rows_of(task.layout, gradient, 1)
    torch.testing.assert_close(row, images[7].flatten(), atol=1e-4, rtol=1e-4)


def test_the_correlation_of_what_is_constant_or_not_finite_is_zero() -> None:
    guesses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0], [float("nan"), 0.0, 1.0]])
    result = correlations(guesses, torch.tensor([[2.0, 4.0, 8.0], [4.0, 3.0, 1.0]]))
    assert result[0].tolist() == pytest.approx([1.0, 1.0])
    assert not result[1:].any()


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (invert(run("strict"), "trap", records=2, seed=5) for _ in range(2))
    assert (first.correlation, first.chance) == (second.correlation, second.chance)


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ((), {"records": 400}, "records, and inverting 400"),
        (("task.model=lenet", "task.image_size=28"), {}, "task.model = softmax or mlp"),
        (("algorithm.name=centralized", "algorithm.lr=1"), {}, "an algorithm of several nodes"),
        (("task.data=own",), {}, "stay with their hosts"),
    ],
)
def test_what_can_t_be_inverted_is_a_sentence(
    settings: tuple[str, ...], options: Any, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        invert(run("none", *settings), "trap", **options)


def test_the_modes_of_an_algorithm() -> None:
    base = load(ExperimentConfig, [EXAMPLE], [], environ={})
    assert modes_of(base) == ("strict", "paper", "none")
    other = load(ExperimentConfig, [EXAMPLE], ["algorithm={name='dp-dmsgd', lr=1}"], environ={})
    assert modes_of(other) == ("strict", "none")
    assert in_mode(other, "none").algorithm.name == "dmsgd"
    bare = other.model_copy(update={"privacy": in_mode(other, "none").privacy})
    bare = bare.model_copy(update={"privacy": bare.privacy.model_copy(update={"epsilon": None})})
    assert in_mode(bare, "strict", 3.0).privacy.epsilon == 3.0
