"""Robust rules against a few lines of NumPy each, and what one liar can do to them."""

import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.config import AlgorithmSection, MixSection
from node.learning.learner import mixing
from node.learning.plan import Plan
from node.maths.mixing import average, mixed, weighted_sum
from node.maths.robust import ENOUGH, RULES, rule_for, undersized_neighborhood
from node.records.summary import Mixing
from peer.errors import ConfigurationError
from peer.topology import make_neighborhoods

ME = "n0"
ROBUST = sorted(set(RULES) - {"mean"})


def normal(n, d, seed=0):
    """{peer: [d]} of n peers."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return {f"n{k}": row for k, row in enumerate(rows)}


def uneven(vectors, seed=0):
    """A row of W that is not uniform."""
    share = np.random.default_rng(seed).uniform(0.5, 1.5, len(vectors))
    return dict(zip(vectors, (share / share.sum()).tolist(), strict=True))


def by(rule, vectors, weight=None, **options):
    mix = MixSection(rule=rule, **options)
    return rule_for("mean", mix, ME)(weight or uneven(vectors), vectors)


def oracle(rule, vectors, weight, byzantine=1, tau=None):
    names = sorted(vectors)
    x, w = (
        np.stack([vectors[name].double().numpy() for name in names]),
        np.array([weight[name] for name in names]),
    )
    n, me = len(x), names.index(ME)
    if rule == "median":
        return np.median(x, axis=0)
    if rule == "trimmed_mean":
        return np.sort(x, axis=0)[byzantine : n - byzantine].mean(0)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    if rule == "multi_krum":
        score = [
            np.sort(np.delete(row, k) ** 2)[: max(1, n - byzantine - 2)].sum()
            for k, row in enumerate(apart)
        ]
        return x[np.lexsort(((apart**2).sum(1), score))[: n - byzantine]].mean(0)
    others = [k for k in range(n) if k != me]
    tau = np.sort(apart[me][others])[len(others) - 1 - byzantine] if tau is None else tau
    return x[me] + sum(w[k] * (x[k] - x[me]) * min(1, tau / apart[me][k]) for k in others)


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize(("n", "byzantine"), [(3, 1), (4, 1), (7, 1), (7, 2), (10, 3), (3, 0)])
def test_it_is_what_a_few_lines_of_numpy_say(rule, n, byzantine):
    if rule in ("trimmed_mean", "multi_krum") and n <= 2 * byzantine:
        pytest.skip("the rule is defined for more than 2 trim vectors only")
    vectors = normal(n, 40_000, seed=n)
    weight = uneven(vectors)
    got = by(rule, vectors, weight, byzantine=byzantine)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(
        got.double(), oracle(rule, vectors, weight, byzantine), rtol=2e-5, atol=2e-6
    )


def test_clipping_with_a_given_radius():
    vectors = normal(5, 300)
    weight = uneven(vectors)
    for tau in (0.5, 20.0, 1e6):
        got = by("clipping", vectors, weight, tau=tau)
        np.testing.assert_allclose(
            got.double(), oracle("clipping", vectors, weight, tau=tau), rtol=2e-5, atol=2e-6
        )
    torch.testing.assert_close(
        got, weighted_sum(weight, vectors)
    )  # a radius that reaches everybody: the mean


def test_mean_keeps_its_bits():
    vectors = normal(6, 1000)
    weight = uneven(vectors)
    assert torch.equal(by("mean", vectors, weight), average(weight, vectors))


cases = st.tuples(st.integers(3, 9), st.integers(1, 40), st.integers(0, 2**20))


@pytest.mark.parametrize("rule", ROBUST)
@given(case=cases, order=st.randoms(use_true_random=False))
def test_who_is_who_among_the_others_does_not_matter(rule, case, order):
    n, d, seed = case
    vectors = normal(n, d, seed)
    weight = dict.fromkeys(vectors, 1 / n)
    others = sorted(set(vectors) - {ME})
    renamed = {
        ME: vectors[ME],
        **{b: vectors[a] for a, b in zip(others, order.sample(others, n - 1), strict=True)},
    }
    torch.testing.assert_close(
        by(rule, renamed, weight), by(rule, vectors, weight), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rule", RULES)
@given(case=cases, sign=st.sampled_from([-1.0, 1.0]))
def test_one_outlier_moves_nothing_but_the_mean(rule, case, sign):
    """Not beyond the hull of the honest ones, coordinate by coordinate; clipping not by more than
    τ.
    """
    n, d, seed = case
    vectors = normal(n, d, seed)
    honest = torch.stack([vectors[name] for name in sorted(vectors)[:-1]])
    vectors[f"n{n - 1}"] = torch.full((d,), sign * 1e6)
    got = by(rule, vectors, dict.fromkeys(vectors, 1 / n))
    low, high = honest.min(0).values - 1e-5, honest.max(0).values + 1e-5
    inside = bool(((got >= low) & (got <= high)).all())
    if rule == "mean":
        assert not inside, "power: the outlier is one that matters"
    elif rule == "clipping":
        assert (got - vectors[ME]).norm() <= (honest - vectors[ME]).norm(dim=1).max() * (1 + 1e-5)
    else:
        assert inside


@pytest.mark.parametrize("rule", ROBUST)
def test_the_vectors_are_left_as_they_are(rule):
    vectors = normal(5, 50)
    before = {name: x.clone() for name, x in vectors.items()}
    got = by(rule, vectors)
    got.add_(1)
    assert all(torch.equal(vectors[name], before[name]) for name in vectors)


@pytest.mark.parametrize("rule", ROBUST)
def test_neighbors_that_agree_with_me_change_nothing(rule):
    x = torch.randn(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(by(rule, dict.fromkeys(("n0", "n1", "n2", "n3"), x)), x)


def test_a_tuple_is_mixed_place_by_place():
    vectors = normal(5, 20)
    weight, mix = uneven(vectors), MixSection(rule="median")
    pairs = {name: (x, 2 * x) for name, x in vectors.items()}
    x, v = mixed(weight, pairs, rule_for("mean", mix, ME))
    assert torch.equal(x, by("median", vectors, weight))
    assert torch.equal(v, 2 * x)


@pytest.mark.parametrize("rule", ROBUST)
def test_where_too_few_were_heard_the_own_vector_stays(rule):
    for n in (1, 2):
        vectors = normal(n, 5)
        got = by(rule, vectors)
        assert torch.equal(got, vectors[ME])
        assert got is not vectors[ME]


def test_what_a_mix_asks_for_itself_goes_before_the_run():
    vectors = normal(5, 20)
    weight = uneven(vectors)
    mix = MixSection(rule="median")
    assert torch.equal(rule_for("mean", mix, ME)(weight, vectors), by("median", vectors, weight))
    assert torch.equal(
        rule_for("trimmed_mean", mix, ME)(weight, vectors), by("trimmed_mean", vectors, weight)
    )
    thrice = rule_for(lambda weight, vectors, me, mix: vectors[me] * 3, mix, "n2")
    assert torch.equal(thrice(weight, vectors), vectors["n2"] * 3)


def test_the_tables_and_the_configuration_name_the_same_rules():
    named = typing.get_args(MixSection.model_fields["rule"].annotation)
    assert set(RULES) == set(ENOUGH) == set(named)
    assert set(typing.get_args(Mixing)) == {*named, "doubly-stochastic", "row"} - {"mean"}


def test_a_graph_that_is_too_thin_for_the_rule_is_one_sentence(run_of):
    ring = make_neighborhoods("ring", ["n0", "n1", "n2", "n3"])
    star = make_neighborhoods("star", ["n0", "n1", "n2", "n3"])
    for rule in RULES:
        Plan.of(run_of(rule=rule), ring)
        assert undersized_neighborhood(ring, MixSection.model_validate({"rule": rule})) is None
    with pytest.raises(
        ConfigurationError,
        match=r"mix.rule = median can tell nothing .* n1 and its neighbors are 2",
    ):
        Plan.of(run_of(rule="median"), star)
    with pytest.raises(ConfigurationError, match=r"lower mix\.byzantine"):
        Plan.of(run_of(rule="trimmed_mean", byzantine=2), ring)


def test_the_rule_of_ross_is_looked_at_too(run_of):
    """Everybody would have stayed with its own vector all the run, and been told the mixing was
    doubly stochastic.
    """
    ring = make_neighborhoods("ring", ["n0", "n1", "n2", "n3"])
    ross = {
        by: run_of(byzantine=byzantine).model_copy(
            update={"algorithm": AlgorithmSection.model_validate({"name": "ross", "mix_by": by})}
        )
        for by, byzantine in (("trimmed_mean", 2), ("pi", 1), ("w", 2))
    }
    with pytest.raises(
        ConfigurationError, match=r"algorithm\.mix_by = trimmed_mean can tell nothing"
    ):
        Plan.of(ross["trimmed_mean"], ring)
    for by, expected in (
        ("trimmed_mean", "trimmed_mean"),
        ("pi", "row"),
        ("w", "doubly-stochastic"),
    ):
        assert mixing(ross[by]) == expected
    Plan.of(ross["pi"], ring)


def test_the_summary_says_what_is_not_doubly_stochastic(run_of):
    assert mixing(run_of()) == "doubly-stochastic"
    assert mixing(run_of(rule="trimmed_mean")) == "trimmed_mean"
    assert run_of(rule="median").digest != run_of().digest, "a run with another rule is another run"


@pytest.fixture
def run_of():
    from node.config import PrivacySection, RunConfig

    return lambda **mix: RunConfig(privacy=PrivacySection(mode="none"), mix=MixSection(**mix))
