"""The figures of section 7 of the specification and of the degree trap; Opacus' PRV accountant as a
second opinion.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from node.privacy import accountant
from node.privacy.accountant import (
    LEAST_SIGMA,
    PLD_CUTOFF,
    Batches,
    Mechanism,
    Spent,
    calibrate,
    epsilon_link,
    epsilon_pld,
    epsilon_rdp,
    epsilon_total,
    remaining_compositions,
)
from peer.errors import ConfigurationError

Q = 250 / 6000
BATCHES: tuple[Batches, ...] = ("independent", "shared")


@pytest.mark.parametrize(
    ("target", "sigma"), [(0.5, 9.61), (1, 5.25), (2, 2.93), (5, 1.49), (8, 1.12)]
)
def test_sigma_of_one_answer(target: float, sigma: float) -> None:
    assert calibrate(target, 1e-4, rate=0.0512, rounds=1000) == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize(
    ("releases", "target", "sigma"), [(10, 1, 16.5), (10, 8, 2.88), (3, 2, 4.94), (3, 8, 1.68)]
)
def test_sigma_of_epsilon_total(releases: int, target: float, sigma: float) -> None:
    """Fully connected with N = 10, and a ring."""
    assert calibrate(target, 1e-4, rate=0.0512, rounds=1000, releases=releases) == pytest.approx(
        sigma, rel=0.01
    )


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(("target", "rounds"), [(0.3, 20), (4.0, 200), (8.0, 1000)])
def test_calibration_is_rounded_up_and_reaches_its_target(
    target: float, rounds: int, batches: Batches
) -> None:
    """With few of the figures that take long."""
    accountant._epsilon_pld.cache_clear()
    sigma = calibrate(target, 1e-5, rate=0.1, rounds=rounds, releases=3, batches=batches)
    assert accountant._epsilon_pld.cache_info().misses <= 9
    made = Mechanism(sigma=sigma, rate=0.1, batches=batches, releases=3)
    less = replace(made, sigma=sigma * 0.998)
    assert epsilon_total(made, rounds, 1e-5) <= target < epsilon_total(less, rounds, 1e-5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("batches", BATCHES)
def test_where_nothing_is_released_any_noise_reaches_the_target(batches: Batches) -> None:
    sigma = calibrate(4.0, 1e-5, rate=0.1, rounds=200, releases=0, batches=batches)
    assert sigma == LEAST_SIGMA
    nothing = Mechanism(sigma=sigma, rate=0.1, batches=batches, releases=0)
    assert epsilon_total(nothing, 200, 1e-5) == 0.0


def test_degree_trap() -> None:
    """One batch for four answers costs 8.90; counting it as four independent ones says 6.60."""
    shared = Mechanism(sigma=2.0, rate=Q, batches="shared", releases=4)
    independent = Mechanism(sigma=2.0, rate=Q, releases=4)
    assert epsilon_total(shared, 1000, 1e-5) == pytest.approx(8.90, rel=0.001)
    assert epsilon_total(independent, 1000, 1e-5) == pytest.approx(6.60, rel=0.001)
    assert (
        epsilon_link(shared, 1000, 1e-5)
        == epsilon_link(independent, 1000, 1e-5)
        == pytest.approx(3.01, rel=0.001)
    )


@pytest.mark.parametrize(("sigma", "rounds"), [(1.0, 100), (1.0, 1000), (2.0, 5000)])
def test_pld_agrees_with_prv_of_opacus(sigma: float, rounds: int) -> None:
    other = PRVAccountant()
    other.history = [(sigma, Q, rounds)]
    ours = epsilon_total(Mechanism(sigma=sigma, rate=Q), rounds, 1e-5)
    assert ours == pytest.approx(other.get_epsilon(1e-5), rel=0.01)
    assert ours < epsilon_rdp([Spent(Mechanism(sigma=sigma, rate=Q), rounds)], 1e-5) < 1.25 * ours


def test_rows_of_different_runs_compose() -> None:
    rows = [
        Spent(Mechanism(sigma=1.0, rate=Q), 300),
        Spent(Mechanism(sigma=2.0, rate=0.01, batches="shared", releases=4), 50),
    ]
    alone = [epsilon_pld([row], 1e-5) for row in rows]
    assert max(alone) < epsilon_pld(rows, 1e-5) < sum(alone)


@pytest.mark.parametrize("mode", ["paper", "none"])
def test_what_has_no_guarantee_makes_every_later_epsilon_infinite(
    mode: Literal["paper", "none"],
) -> None:
    rows = [
        Spent(Mechanism(sigma=2.0, rate=Q), 3),
        Spent(Mechanism(sigma=2.0, rate=Q, mode=mode), 1),
    ]
    assert epsilon_pld(rows, 1e-5) == epsilon_rdp(rows, 1e-5) == math.inf
    assert remaining_compositions(rows, Mechanism(sigma=5.0, rate=Q), 1e9, 1e-5) == 0


@settings(max_examples=5, deadline=None)
@given(
    sigma=st.floats(1.0, 4.0),
    rate=st.floats(0.01, 0.3),
    limit=st.floats(0.5, 8.0),
    past=st.integers(0, 60),
    batches=st.sampled_from(BATCHES),
)
def test_remaining_compositions_is_the_last_affordable_number(
    sigma: float, rate: float, limit: float, past: int, batches: Batches
) -> None:
    rows = [Spent(Mechanism(sigma=3.0, rate=0.05), past)]
    mechanism = Mechanism(sigma=sigma, rate=rate, batches=batches, releases=3)
    left = remaining_compositions(rows, mechanism, limit, 1e-5, most=2000)
    if left:
        assert epsilon_pld([*rows, Spent(mechanism, left)], 1e-5) <= limit
    if left < 2000:
        assert epsilon_pld([*rows, Spent(mechanism, left + 1)], 1e-5) > limit


@pytest.mark.parametrize(
    ("sigma", "rate", "delta"),
    [(1e-3, 0.5, 1e-5), (0.05, 1.0, 1e-5), (2.0, Q, 1e-30), (1.0, 1e-9, 1e-12), (1e5, 1.0, 0.9)],
)
def test_no_figure_is_ever_an_exception(sigma: float, rate: float, delta: float) -> None:
    figure = epsilon_pld([Spent(Mechanism(sigma=sigma, rate=rate), 1000)], delta)
    assert figure >= 0.0
    if sigma < 0.1:
        assert figure > PLD_CUTOFF


def test_nothing_spent_is_zero() -> None:
    assert (
        epsilon_pld([], 1e-5) == epsilon_pld([Spent(Mechanism(sigma=1.0, rate=Q), 0)], 1e-5) == 0.0
    )


def test_unreachable_target_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="choose a larger"):
        calibrate(1e-9, 1e-30, rate=1.0, rounds=10)
