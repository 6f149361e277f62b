"""From gradients to weights: the game of ROSS and PDSL, φ' and π, against the golden vectors and by
hand.
"""

from __future__ import annotations

from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch

from kit.golden import EQUATIONS
from node.maths.coalitions import (
    ShapleyConfig,
    adds_nothing,
    aggregation_weights,
    capped,
    clip_relative_norms,
    gains,
    mix_arguments,
    shapley_values,
    shapley_weights,
    smoothed,
    unsupported_reason,
)
from node.maths.mixing import mixing_row
from node.maths.shapley import exact
from peer.neighborhood import Neighborhood

SHAPLEY, FALLBACKS = EQUATIONS["shapley"], EQUATIONS["shapley_fallbacks"]


class UtilityOracle:
    """v(x) = −‖x − c‖², and what it was asked."""

    def __init__(self, wanted):
        self.wanted, self.asked, self.time = wanted, [], 0.0

    def around(self, x, moves, kind):
        def values(aggregation_weights):
            self.asked += [(x + share @ moves, kind) for share in aggregation_weights]
            return [
                -float((x + share @ moves - self.wanted).square().sum())
                for share in aggregation_weights
            ]

        return values

    def gradient(self, x):
        return 2 * (x - self.wanted)

    def now(self):
        self.time += 1.0
        return self.time


def vectors(k, seed=0, d=5):
    chance = torch.Generator().manual_seed(seed)
    return {f"p{i:02}": torch.randn(d, dtype=torch.float64, generator=chance) for i in range(k)}


def close(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(abs(actual[j] - expected[j]) < 1e-12 for j in expected)


def test_phi_of_the_golden_game():
    values = {int(mask): v for mask, v in SHAPLEY["value_by_bitmask"].items()}
    estimate = exact(len(SHAPLEY["players"]), lambda masks: [values[mask] for mask in masks])
    close({str(i): phi for i, phi in enumerate(estimate.phi)}, SHAPLEY["phi"])


@pytest.mark.parametrize("normalization", ["minmax", "relu", "softmax"])
def test_pi_of_the_golden_game(normalization):
    close(
        aggregation_weights(
            ShapleyConfig(normalization=normalization), SHAPLEY["phi"], SHAPLEY["w"]
        ),
        SHAPLEY[f"pi_{normalization}"],
    )


@pytest.mark.parametrize(
    ("normalization", "phi", "expected"),
    [
        ("relu", "phi_all_negative", "pi_relu_all_negative"),
        ("minmax", "phi_all_equal", "pi_minmax_all_equal"),
    ],
)
def test_where_nothing_is_left_pi_is_w(normalization, phi, expected):
    close(
        aggregation_weights(
            ShapleyConfig(normalization=normalization), FALLBACKS[phi], FALLBACKS["w"]
        ),
        FALLBACKS[expected],
    )


def test_pi_falls_back_to_w_over_those_heard():
    pi = aggregation_weights(
        ShapleyConfig(), {"a": -1.0, "b": -2.0}, {"a": 0.2, "b": 0.3, "c": 0.5}
    )
    close(pi, {"a": 0.4, "b": 0.6})


def test_softmax_is_of_phi_over_the_temperature_and_bears_large_ones():
    phi, w = {"a": 1000.0, "b": 999.0}, {"a": 0.5, "b": 0.5}
    pi = aggregation_weights(ShapleyConfig(normalization="softmax", temperature=2.0), phi, w)
    assert pi["a"] / pi["b"] == pytest.approx(np.exp(0.5))


def test_a_coalition_moves_the_model_by_the_mean_of_its_gradients():
    """x(S) = x − γ·mean_{j∈S} g_j, x(∅) = x; all 2^k of them, each once, and φ by the
    definition.
    """
    cross, x, step = vectors(3), torch.zeros(5, dtype=torch.float64), 0.3
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    phi, estimate = shapley_values(ShapleyConfig(value="neg_loss"), utility, x, cross, step, "seed")
    peers = sorted(cross)
    v = {}
    for size in range(4):
        for members in combinations(peers, size):
            model = x - step * sum(cross[j] for j in members) / size if size else x
            assert any(torch.allclose(model, asked, atol=1e-15) for asked, _ in utility.asked)
            v[frozenset(members)] = -float((model - utility.wanted).square().sum())
    assert len(utility.asked) == estimate.evaluations == 8
    assert {kind for _, kind in utility.asked} == {"neg_loss"}
    for j in peers:
        others = [p for p in peers if p != j]
        expected = sum(
            factorial(size) * factorial(2 - size) / 6 * (v[frozenset({*S, j})] - v[frozenset(S)])
            for size in range(3)
            for S in combinations(others, size)
        )
        assert phi[j] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("k", "sampled"), [(8, False), (9, True)])
def test_up_to_eight_players_are_exact_above_they_are_sampled(k, sampled):
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    _, estimate = shapley_values(
        ShapleyConfig(), utility, torch.zeros(5, dtype=torch.float64), vectors(k), 0.1, "seed"
    )
    assert (estimate.evaluations < 1 << k) == sampled
    assert estimate.evaluations <= (10 * (k - 1) + 2 if sampled else 256)


def test_svarm_spends_no_more_than_the_permutations_would():
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    options = ShapleyConfig(estimator="svarm", permutations=10)
    _, estimate = shapley_values(
        options, utility, torch.zeros(5, dtype=torch.float64), vectors(10), 0.1, "seed"
    )
    assert 62 <= estimate.evaluations <= 92


def test_a_budget_in_seconds_ends_the_sampling():
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    options = ShapleyConfig(estimator="permutations", permutations=1000, seconds=3.0)
    _, estimate = shapley_values(
        options, utility, torch.zeros(5, dtype=torch.float64), vectors(10), 0.1, "seed"
    )
    assert estimate.evaluations < 50


def test_the_same_seed_samples_the_same():
    def phi(seed):
        utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
        return shapley_values(
            ShapleyConfig(), utility, torch.zeros(5, dtype=torch.float64), vectors(10), 0.1, seed
        )[0]

    assert phi("n0 3") == phi("n0 3") != phi("n0 4")


def test_first_order_is_near_for_small_steps():
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    x, cross = torch.zeros(5, dtype=torch.float64), vectors(4)
    full, _ = shapley_values(ShapleyConfig(value="neg_loss"), utility, x, cross, 1e-5, "seed")
    near, estimate = shapley_values(
        ShapleyConfig(value="neg_loss", estimator="first_order"), utility, x, cross, 1e-5, "seed"
    )
    assert estimate.evaluations == 0
    assert all(near[j] == pytest.approx(full[j], rel=1e-3) for j in cross)


def test_a_gain_is_over_staying_put_alone_or_beside_all_others():
    utility, x, cross, step = (
        UtilityOracle(torch.ones(5, dtype=torch.float64)),
        torch.zeros(5, dtype=torch.float64),
        vectors(3),
        0.3,
    )
    gain = gains(
        ShapleyConfig(value="neg_loss"), utility, x, {**cross, "z": torch.zeros_like(x)}, step
    )

    def value(model):
        return -float((model - utility.wanted).square().sum())

    total = sum(cross.values())
    for j, g in cross.items():
        alone = value(x - step * g) - value(x)
        beside = value(x - step * total / 4) - value(x - step * (total - g) / 4)
        assert gain[j] == pytest.approx(max(alone, beside), abs=1e-12)
    assert gain["z"] == 0
    near = gains(ShapleyConfig(value="neg_loss", estimator="first_order"), utility, x, cross, 1e-6)
    full = gains(ShapleyConfig(value="neg_loss"), utility, x, cross, 1e-6)
    assert all(near[j] == pytest.approx(full[j], rel=1e-3) for j in cross)


def test_who_adds_nothing_keeps_its_share_and_the_others_have_the_rest():
    weight = {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}
    close(
        capped({"a": 0.1, "b": 0.6, "c": 0.3}, weight, {"a", "c"}, "a"),
        {"a": 1 / 6, "b": 1 / 3, "c": 1 / 2},
    )
    close(
        capped({"a": 0.0, "b": 0.9, "c": 0.1}, weight, {"a"}, "a"),
        {"a": 1 - 1 / 3 - 0.1, "b": 1 / 3, "c": 0.1},
    )
    close(capped({"b": 0.9, "c": 0.1}, weight, set(), "a"), {"b": 0.5, "c": 0.5})
    honest = {"a": 0.2, "b": 0.5, "c": 0.3}
    assert capped(honest, weight, {"a", "b", "c"}, "a") == honest
    assert capped({"a": 0.9, "b": 0.1, "c": 0.0}, weight, set(), "a")["a"] == pytest.approx(0.9), (
        "never the own one"
    )


def test_zeros_and_echoes_add_nothing():
    chance = torch.Generator().manual_seed(0)
    x, g = torch.randn(1000, generator=chance), torch.randn(1000, generator=chance)
    assert adds_nothing(torch.zeros(1000), x)
    assert adds_nothing(x, x)
    assert adds_nothing(-0.01 * x + 1e-4 * g, x)
    assert not adds_nothing(g, x)
    assert not adds_nothing(x + g, x)
    assert not adds_nothing(g, torch.zeros(1000)), "at a start of zeros all is news"


def test_smoothing_starts_with_phi_and_keeps_who_is_not_heard():
    options = ShapleyConfig(smoothing=0.75)
    first = smoothed(options, {}, {"a": 1.0, "b": 2.0})
    assert first == {"a": 1.0, "b": 2.0}
    assert smoothed(options, first, {"a": 5.0}) == {"a": 2.0, "b": 2.0}


def test_weights_are_of_those_heard_and_add_up_to_one():
    utility = UtilityOracle(torch.ones(5, dtype=torch.float64))
    weight = {"p00": 0.4, "p01": 0.3, "p02": 0.3}
    cross = vectors(2)
    before = {"p02": 9.0}
    weights = shapley_weights(
        ShapleyConfig(),
        utility,
        torch.zeros(5, dtype=torch.float64),
        cross,
        weight=weight,
        before=before,
        step=0.1,
        seed="",
        me="p00",
    )
    assert weights.pi.keys() == weights.phi.keys() == cross.keys()
    assert sum(weights.pi.values()) == pytest.approx(1)
    assert weights.smooth["p02"] == 9.0


def test_states_are_mixed_by_pi_of_those_that_came():
    pi = {"a": 0.2, "b": 0.6, "c": 0.2}
    rule, weights = mix_arguments(ShapleyConfig(mix_by="pi"), pi)
    assert (rule, weights) == ("mean", pi)
    here = Neighborhood(me="a", weight=dict.fromkeys("abc", 1 / 3), nodes=3)
    assert mixing_row(here, {"b"}, weights) == {"a": 0.25, "b": pytest.approx(0.75)}
    assert mixing_row(here, {"b"}, {"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 0.0}
    assert mixing_row(here, {"b"}) == {"a": 2 / 3, "b": 1 / 3}
    assert mix_arguments(ShapleyConfig(), pi) == ("mean", None)
    assert mix_arguments(ShapleyConfig(mix_by="trimmed_mean"), pi) == ("trimmed_mean", None)


@pytest.mark.parametrize(
    ("options", "players", "says"),
    [
        ({"estimator": "first_order"}, 3, "neg_loss"),
        ({"estimator": "exact"}, 20, "2^20 coalitions"),
        ({"estimator": "svarm", "evaluations": 10}, 10, "svarm needs 62"),
        ({"estimator": "svarm", "permutations": 2}, 10, "too few"),
        ({"estimator": "permutations"}, 100, ""),
        ({"estimator": "svarm"}, 10, ""),
    ],
)
def test_what_options_can_not_value_is_a_sentence(options, players, says):
    reason = unsupported_reason(ShapleyConfig(**options), players)
    assert says in reason if says else not reason


@pytest.mark.parametrize("normalization", ["relu", "minmax"])
def test_rounding_earns_nothing(normalization):
    """On a validation set that no coalition moves, sums leave 1e-18 here and there; all the weight
    went there.
    """

    class Unmoved(UtilityOracle):
        def around(self, x, moves, kind):
            return lambda aggregation_weights: [24 / 143] * len(aggregation_weights)

    cross, weight = vectors(5), {"p00": 0.4, "p01": 0.1, "p02": 0.2, "p03": 0.2, "p04": 0.1}
    arguments: dict[str, Any] = {
        "weight": weight,
        "before": {},
        "step": 0.1,
        "seed": "s",
        "me": "p00",
    }
    weights = shapley_weights(
        ShapleyConfig(normalization=normalization),
        Unmoved(None),
        torch.zeros(5),
        cross,
        **arguments,
    )
    assert any(weights.phi.values()), "power: rounding leaves something"
    close(weights.pi, weight)


def test_a_gradient_out_of_reach_is_shortened_and_others_stay_bit_for_bit():
    cross = {
        "a": torch.tensor([3.0, 4.0]),
        "b": torch.tensor([30.0, 39.0]),
        "liar": torch.tensor([0.0, 1e16]),
    }
    clipped = clip_relative_norms(cross, "a")
    assert clipped["a"] is cross["a"]
    assert clipped["b"] is cross["b"]
    assert torch.allclose(clipped["liar"], torch.tensor([0.0, 10 * 5.0]))


def test_where_the_own_gradient_is_zero_the_others_median_counts():
    cross = {
        "a": torch.zeros(1),
        "b": torch.ones(1),
        "c": 2 * torch.ones(1),
        "liar": 1e9 * torch.ones(1),
    }
    assert [float(g) for g in clip_relative_norms(cross, "a").values()] == [0.0, 1.0, 2.0, 20.0]
    assert clip_relative_norms({"a": torch.zeros(1), "b": torch.zeros(1)}, "a")["b"] == 0


def test_values_that_are_no_numbers_are_worth_nothing_and_are_forgotten():
    """A model without finite logits has no loss: π = w in that round, and φ̄ stays a number."""

    class Broken(UtilityOracle):
        def around(self, x, moves, kind):
            return lambda aggregation_weights: [float("nan")] * len(aggregation_weights)

    arguments: dict[str, Any] = {
        "weight": {"a": 0.25, "b": 0.75},
        "before": {"a": 1.0},
        "step": 0.1,
        "seed": "s",
        "me": "p00",
    }
    for normalization in ("relu", "minmax", "softmax"):
        options = ShapleyConfig(value="neg_loss", smoothing=0.5, normalization=normalization)
        weights = shapley_weights(
            options,
            Broken(None),
            torch.zeros(1),
            {"a": torch.ones(1), "b": torch.ones(1)},
            **arguments,
        )
        assert weights.smooth == {"a": 0.5, "b": 0.0}
        assert sum(weights.pi.values()) == pytest.approx(1.0)
