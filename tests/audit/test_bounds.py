"""Lower bounds on ε against closed forms, a naive count, simulated scores, and another library."""

from __future__ import annotations

import importlib.util
import sys
from math import comb, exp, inf, log, sqrt
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from node.audit.bounds import Guesses, Spread, chance, epsilon_of, guesses, one_run

Scores = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def naive(right: int, made: int, canaries: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2, term by term."""
    p = exp(epsilon) / (1 + exp(epsilon))
    pmf = [comb(made, k) * p**k * (1 - p) ** (made - k) for k in range(made + 1)]
    tail = [sum(pmf[max(0, right - i) :]) for i in range(right + 1)]
    slack = max([0.0, *((tail[i] - tail[0]) / i for i in range(1, right + 1))])
    return min(1.0, tail[0] + 2 * canaries * delta * slack)


@pytest.mark.parametrize("right", [0, 1, 30, 39, 40])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.7, 1e-3), (3.0, 1e-5)])
def test_the_chance_of_so_many_right_guesses(right: int, epsilon: float, delta: float) -> None:
    made = Guesses(made=40, right=right)
    assert chance(made, 500, epsilon, delta) == pytest.approx(
        naive(right, 40, 500, epsilon, delta), rel=1e-9, abs=1e-15
    )


def test_all_guesses_right_without_delta() -> None:
    """p^r = error."""
    p = 0.05 ** (1 / 100)
    found = epsilon_of(Guesses(made=100, right=100), 1000, 0.0, 0.05)
    assert found == pytest.approx(log(p / (1 - p)), abs=2e-4)
    assert epsilon_of(Guesses(made=100, right=50), 1000, 0.0, 0.05) == 0.0


def test_who_is_guessed() -> None:
    scores = np.array([5.0, -3.0, 4.0, 0.0, -2.0, 1.0, 0.5, -1.0, 0.1, 0.2])
    included = scores > 0.3
    assert guesses(scores, included, 0.2, 0.2) == Guesses(made=4, right=4)
    included[0] = False
    assert guesses(scores, included, 0.2, 0.0) == Guesses(made=2, right=1)
    assert guesses(scores, ~included, 0.2, 0.2) == Guesses(made=4, right=1)


RATE, RELEASES, SIGMA = 0.05, 40, 0.8


def simulated(seed: int, m: int = 1000, sensitivity: float = 1.0, sigma: float = SIGMA) -> Scores:
    """Scores of RELEASES subsampled Gaussians."""
    draw = np.random.default_rng(seed)
    included = draw.random(m) < 0.5
    signal = sensitivity * draw.binomial(RELEASES, RATE, m) / RELEASES
    return included * signal + sigma / sqrt(RELEASES) * draw.standard_normal(m), included


def largest(scores: Scores, error: float = 0.05) -> float:
    return Spread.of(*scores).largest_sigma(RATE, RELEASES, error)


def test_the_largest_noise_is_too_small_as_seldom_as_it_may() -> None:
    """Power: it is close to the true one, and half the noise is another world."""
    found = [largest(simulated(seed)) for seed in range(400)]
    wrong = sum(sigma < SIGMA for sigma in found)
    assert wrong <= 25  # 400 times 2.5 % to 5 %; 26 or more of Bin(400, 0.04) are 0.5 %
    assert np.median(found) < 1.08 * SIGMA
    assert max(largest(simulated(seed, sigma=SIGMA / 2), 1e-4) for seed in range(50)) < 0.65 * SIGMA


def test_twice_the_sensitivity_is_half_the_noise() -> None:
    scores, included = simulated(1, 40_000, sensitivity=2.0)
    assert largest((scores, included)) == pytest.approx(SIGMA / 2, rel=0.1)
    assert largest((scores * 0, included)) == 0.0, "no noise"
    draw = np.random.default_rng(0)
    assert largest((draw.standard_normal(len(scores)) - 9 * included, included)) == inf


def test_no_noise_is_seen_as_such() -> None:
    scores, included = simulated(1, sigma=0.0)
    assert largest((scores, included)) == 0.0
    bound, best = one_run(scores, included, 1e-5, 0.05)
    assert best.right == best.made
    assert bound > 2.9


@pytest.fixture
def jax_privacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its file of audits alone, which needs no JAX."""
    found = importlib.util.find_spec("jax_privacy")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps jax-privacy (210 kB; JAX itself is not needed)")
    file = Path(found.submodule_search_locations[0]) / "auditing.py"
    spec = importlib.util.spec_from_file_location("jax_privacy_auditing", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.extras
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("high", "delta"), [(0.01, 1e-5), (0.1, 1e-3)])
def test_another_library_has_the_same_bound(
    jax_privacy: ModuleType, seed: int, high: float, delta: float
) -> None:
    """jax_privacy, which guesses only who is in, above a threshold that is given."""
    scores, included = simulated(seed, 4000, sigma=0.3)
    made = guesses(scores, included, high, 0.0)
    threshold = np.sort(scores)[-made.made]
    auditor = jax_privacy.CanaryScoreAuditor(scores[included], scores[~included])
    strategy = jax_privacy.Explicit(threshold)
    theirs = auditor.epsilon_one_run(0.05, delta, threshold_strategy=strategy)
    ours = epsilon_of(made, len(scores), delta, 0.05)
    assert ours > 0.2
    assert ours == pytest.approx(theirs, abs=5e-4)
