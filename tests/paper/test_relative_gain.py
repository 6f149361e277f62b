"""FGRPO's weights (a reconstruction): its equations by golden vectors, and their properties."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.golden import EQUATIONS as CASES
from node.maths.relative_gain import Baseline, GainConfig, gain_weights, mixing_weights

CASE, CAPPED = CASES["fgrpo"], CASES["fgrpo_cap_two_passes"]
NAMES = [f"n{k}" for k in range(4)]
REWARDS = st.lists(st.floats(-100, 100), min_size=3, max_size=12)
GAINS = st.lists(st.floats(-50, 50), min_size=1, max_size=9)


def config(**options):
    names = {"c": "clip", "tau": "temperature", "u_max": "cap", "lam": "decay", "mu": "mixing"}
    case = {names[key]: CASE[key] for key in names}
    return GainConfig(**{**case, **options})


def baselines():
    return [Baseline(9, b, s) for b, s in zip(CASE["base"], CASE["std"], strict=True)]


def by_name(values):
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize(("form", "key"), [("z", "gain"), ("ratio", "gain_ratio_form")])
def test_the_gain_is_against_the_own_past(form, key):
    gains = [b.gain(r, config(form=form)) for b, r in zip(baselines(), CASE["R"], strict=True)]
    assert gains == pytest.approx(CASE[key])


def test_the_spread_moves_before_the_base():
    after = [b.observe(r, config()) for b, r in zip(baselines(), CASE["R"], strict=True)]
    assert [b.spread for b in after] == pytest.approx(CASE["std_next"])
    assert [b.mean for b in after] == pytest.approx(CASE["base_next"])


def test_weights_are_a_clipped_capped_softmax_mixed_with_the_row_of_w():
    gains, row = by_name(CASE["gain"]), by_name(CASE["W_row"])
    assert list(gain_weights(gains, config()).values()) == pytest.approx(CASE["u"])
    assert list(mixing_weights(row, gains, config()).values()) == pytest.approx(CASE["mixed"])


def test_the_excess_over_the_cap_is_shared_until_nobody_is_above_it():
    capped = config(cap=CAPPED["u_max"], mixing=CAPPED["mu"])
    gains, row = by_name(CAPPED["gain"]), by_name(CAPPED["W_row"])
    assert list(gain_weights(gains, capped).values()) == pytest.approx(CAPPED["u"])
    assert list(mixing_weights(row, gains, capped).values()) == pytest.approx(CAPPED["mixed"])


def test_the_first_two_rewards_gain_nothing_and_the_third_is_measured_by_the_first_surprise():
    start = Baseline()
    one = start.observe(3.0, config())
    two = one.observe(5.0, config())
    assert (start.gain(3.0, config()), one.gain(5.0, config())) == (0.0, 0.0)
    assert (one.mean, one.spread) == (3.0, 0.0)
    assert (two.mean, two.spread) == pytest.approx((3.2, 2.0))
    assert two.gain(5.2, config()) == pytest.approx(1.0)


@given(REWARDS, st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_and_offset_of_a_peers_rewards_do_not_matter(rewards, a, c):
    """R → aR + c leaves the gain in z-form as it was, while the spread is no rounding error."""
    plain, scaled = Baseline(), Baseline()
    for reward in rewards[:-1]:
        plain = plain.observe(reward, config())
        scaled = scaled.observe(a * reward + c, config())
    if plain.spread < 1e-3 or scaled.spread < 1e-3:
        return
    gains = plain.gain(rewards[-1], config()), scaled.gain(a * rewards[-1] + c, config())
    assert gains[0] == pytest.approx(gains[1], rel=1e-5, abs=1e-5)


@given(st.integers(1, 9), st.floats(-5, 5))
def test_equal_gains_weigh_the_same(n, gain):
    weights = gain_weights({f"n{k}": gain for k in range(n)}, GainConfig())
    assert list(weights.values()) == pytest.approx([1 / n] * n)


@given(GAINS, st.floats(0.05, 1.0), st.floats(0.1, 5))
def test_weights_add_up_to_one_and_stay_below_the_cap(gains, cap, temperature):
    named = {f"n{k}": gain for k, gain in enumerate(gains)}
    weights = gain_weights(named, GainConfig(cap=cap, temperature=temperature))
    assert sum(weights.values()) == pytest.approx(1.0)
    assert max(weights.values()) <= max(cap, 1 / len(gains)) + 1e-12
    assert all(weight >= 0 for weight in weights.values())


def test_a_claim_bounds_a_liars_weight():
    row = dict.fromkeys(NAMES, 0.25)
    weights = mixing_weights(row, by_name([1e9, 0, 0, 0]), GainConfig())
    assert weights["n0"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)


def test_a_moving_average_forgets():
    baseline, surprise = Baseline(2, 0.0, 1.0), GainConfig(decay=0.5)
    after = baseline.observe(3.0, surprise)
    assert (after.mean, after.spread) == pytest.approx((1.5, sqrt(0.5 * 1 + 0.5 * 9)))


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_a_reward_that_is_none_gains_least_and_moves_no_baseline(reward):
    baseline, c = Baseline(5, 1.0, 2.0), GainConfig()
    assert baseline.gain(reward, c) == -c.clip
    assert baseline.observe(reward, c) == baseline


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_a_gain_that_is_no_number_weighs_least(gain):
    weights = gain_weights({"a": 0.0, "b": gain, "c": 0.0}, GainConfig())
    assert weights["b"] == min(weights.values()) < weights["a"]
