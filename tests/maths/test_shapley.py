"""Shapley values: against the definition, shapiq and the golden vectors; the axioms; and how good
the estimates are.
"""

from __future__ import annotations

import itertools
import random
from math import factorial, inf, isfinite, sqrt
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.maths.shapley import exact, first_order, permutations, svarm, svarm_least


def naive(k, v):
    """The definition, coalition by coalition."""
    phi = []
    for i in range(k):
        total, others = 0.0, [j for j in range(k) if j != i]
        for size in range(k):
            for members in itertools.combinations(others, size):
                s = sum(1 << j for j in members)
                total += (
                    factorial(size)
                    * factorial(k - size - 1)
                    / factorial(k)
                    * (v[s | 1 << i] - v[s])
                )
        phi.append(total)
    return phi


def game(k, seed):
    draw = random.Random(seed)
    return [draw.uniform(-1, 1) for _ in range(1 << k)]


class Asked:
    """A table of values; every coalition may be asked for once."""

    def __init__(self, v):
        self.v, self.asked = v, []

    def __call__(self, masks):
        self.asked += masks
        assert len(set(self.asked)) == len(self.asked), "asked for twice"
        return [self.v[mask] for mask in masks]


games = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.floats(-100, 100), min_size=1 << k, max_size=1 << k)
    )
)
estimators = pytest.mark.parametrize(
    "estimate",
    [
        exact,
        lambda k, v: permutations(k, v, count=4, draw=random.Random(1)),
        lambda k, v: permutations(
            k, v, count=3, draw=random.Random(1), antithetic=False, truncation=0.5
        ),
        lambda k, v: svarm(k, v, budget=svarm_least(k), draw=random.Random(1)),
    ],
    ids=["exact", "permutations", "truncated", "svarm"],
)


@given(games)
def test_exact_is_the_definition(drawn):
    k, v = drawn
    assert exact(k, Asked(v)).phi == pytest.approx(naive(k, v), abs=1e-10)


@pytest.mark.parametrize("k", [2, 5, 7])
def test_exact_is_what_shapiq_says(k):
    import numpy as np
    import shapiq

    v = game(k, k)

    class Table(shapiq.Game):
        def __init__(self):
            super().__init__(n_players=k, normalize=True, normalization_value=v[0])

        def value_function(self, coalitions):
            return np.array([v[sum(1 << i for i in range(k) if row[i])] for row in coalitions])

    values = shapiq.ExactComputer(n_players=k, game=Table())("SV")
    assert exact(k, Asked(v)).phi == pytest.approx([values[(i,)] for i in range(k)], abs=1e-12)


def test_exact_values_every_coalition_once():
    asked = Asked(game(5, 1))
    estimate = exact(5, asked)
    assert sorted(asked.asked) == list(range(32))
    assert (estimate.evaluations, estimate.error) == (32, (0.0,) * 5)


@estimators
@given(drawn=games)
@settings(max_examples=50)
def test_efficiency_the_values_share_out_what_the_whole_is_worth(estimate, drawn):
    """To 1e-12·max(1, |v|), whatever was drawn."""
    k, v = drawn
    remainder = sum(estimate(k, Asked(v)).phi) - (v[-1] - v[0])
    assert abs(remainder) <= 1e-12 * max(1, *map(abs, v)) * (1 << k)


@given(games, st.data())
def test_a_null_player_is_worth_nothing_and_twins_are_worth_the_same(drawn, data):
    k, v = drawn
    i = data.draw(st.integers(0, k - 1))
    null = [v[mask & ~(1 << i)] for mask in range(1 << k)]
    assert exact(k, Asked(null)).phi[i] == pytest.approx(0, abs=1e-10)
    j = data.draw(st.integers(0, k - 1))
    if i != j:
        pair = 1 << i | 1 << j
        twins = [
            v[(m & ~pair) | (1 << i if m & pair and m & pair != pair else m & pair)]
            for m in range(1 << k)
        ]
        phi = exact(k, Asked(twins)).phi
        assert phi[i] == pytest.approx(phi[j], abs=1e-10)


def test_all_orders_together_are_exact():
    v = game(4, 3)
    estimate = permutations(4, Asked(v), count=20_000, draw=random.Random(0))
    assert estimate.phi == pytest.approx(exact(4, Asked(v)).phi, abs=0.02)
    assert estimate.evaluations == 16


def test_an_antithetic_pair_is_an_order_and_its_reverse():
    """In a game where only who comes first counts, two orders name two different players, who are
    never the same.
    """
    k = 5
    first = [0.0 if m == 0 else 1.0 for m in range(1 << k)]
    for seed in range(20):
        phi = permutations(k, Asked(first), count=2, draw=random.Random(seed)).phi
        assert sorted(phi) == [0, 0, 0, 0.5, 0.5]


def test_truncation_saves_coalitions_and_shares_the_rest_equally():
    k = 6
    v = [0.0 if m == 0 else 1.0 + 1e-4 * m.bit_count() for m in range(1 << k)]
    whole = permutations(k, Asked(v), count=2, draw=random.Random(2))
    short = permutations(k, Asked(v), count=2, draw=random.Random(2), truncation=0.01)
    assert short.evaluations == 4
    assert whole.evaluations > 10
    assert min(short.phi) == pytest.approx((v[-1] - v[1]) / 5)


@estimators
def test_no_coalition_is_asked_for_twice(estimate):
    estimate(6, Asked(game(6, 9)))


@pytest.mark.parametrize("k", [2, 3, 4, 6, 9])
def test_svarm_needs_what_it_says_and_keeps_to_its_budget(k):
    v = game(k, k)
    assert svarm(k, Asked(v), budget=1, draw=random.Random(1)).evaluations <= svarm_least(k)
    budget = svarm_least(k) + 7
    assert svarm(k, Asked(v), budget=budget, draw=random.Random(1)).evaluations <= budget
    if k <= 4:
        every = svarm(k, Asked(v), budget=1 << k, draw=random.Random(1))
        assert every.phi == pytest.approx(exact(k, Asked(v)).phi, abs=1e-12)
        assert every.error == (0.0,) * k


def test_samples_end_when_the_time_is_up_and_one_is_always_made():
    v = game(8, 1)
    assert (
        permutations(8, Asked(v), count=50, draw=random.Random(1), enough=lambda: True).evaluations
        == 9
    )
    little = svarm(8, Asked(v), budget=200, draw=random.Random(1), enough=lambda: True)
    assert little.evaluations <= svarm_least(8)
    assert all(map(isfinite, little.phi))


def errors(k, budget, estimate, games=30):
    """(root mean square error ÷ spread of φ, that of the errors in units of the standard error),
    over random games.
    """
    off, standard = [], []
    for seed in range(games):
        v = game(k, seed)
        phi, estimated = exact(k, Asked(v)).phi, estimate(k, Asked(v), budget, random.Random(seed))
        apart = [a - b for a, b in zip(estimated.phi, phi, strict=True)]
        off.append(sqrt(fmean(x * x for x in apart)) / pstdev(phi))
        standard += [x / e for x, e in zip(apart, estimated.error, strict=True) if 0 < e < inf]
    return fmean(off), sqrt(fmean(z * z for z in standard))


def test_svarm_is_at_least_twice_as_good_as_permutations_for_as_many_coalitions():
    """Random games are the worst case. What is asked for, not what is hoped for: it is 2.4 to 4
    times better.
    """
    k, budget = 10, 200

    def orders(k, v, budget, draw):
        return permutations(k, v, count=(budget - 2) // (k - 1), draw=draw)

    ours, theirs = (
        errors(k, budget, lambda k, v, b, draw: svarm(k, v, budget=b, draw=draw)),
        errors(k, budget, orders),
    )
    assert 2 * ours[0] < theirs[0]


def test_the_standard_errors_are_about_right():
    """Errors have a size of about one standard error, for both estimators."""
    for estimate in (
        lambda k, v, b, draw: svarm(k, v, budget=b, draw=draw),
        lambda k, v, b, draw: permutations(k, v, count=20, draw=draw),
    ):
        assert 0.6 < errors(9, 200, estimate)[1] < 1.7


def test_one_pair_of_orders_knows_no_error():
    assert permutations(4, Asked(game(4, 1)), count=2, draw=random.Random(1)).error == (inf,) * 4


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=7))
def test_first_order_is_exact_where_values_are_means(slopes):
    k = len(slopes)
    v = [fmean(a for i, a in enumerate(slopes) if m >> i & 1) if m else 0.0 for m in range(1 << k)]
    assert first_order(slopes).phi == pytest.approx(exact(k, Asked(v)).phi, abs=1e-9)
