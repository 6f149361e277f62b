"""The spectral gap against closed forms, and what it promises."""

from math import cos, pi

import numpy as np
import pytest

from node.maths.graph import spectral_gap
from peer.topology import TOPOLOGIES, GraphOptions, make_neighborhoods


def rows(kind, n, **wiring):
    neighborhoods = make_neighborhoods(kind, [f"n{i:02}" for i in range(n)], GraphOptions(**wiring))
    return {i: neighborhood.weight for i, neighborhood in neighborhoods.items()}


@pytest.mark.parametrize(
    ("kind", "n", "gap"),
    [
        ("full", 1, 1),
        ("full", 10, 1),
        ("ring", 4, 1 - 1 / 3),
        ("ring", 10, 1 - (1 + 2 * cos(2 * pi / 10)) / 3),
        ("ring", 64, 1 - (1 + 2 * cos(2 * pi / 64)) / 3),
        ("hypercube", 16, 2 / 5),
        ("star", 10, 1 / 10),
        ("torus", 16, 1 - 3 / 5),
    ],
)
def test_closed_forms(kind, n, gap):
    assert spectral_gap(rows(kind, n)) == pytest.approx(gap, abs=1e-12)


def test_a_negative_eigenvalue_counts_by_its_size():
    """Two nodes that nearly swap: λ₂ = −0.8."""
    assert spectral_gap({"a": {"a": 0.1, "b": 0.9}, "b": {"a": 0.9, "b": 0.1}}) == pytest.approx(
        0.2
    )


@pytest.mark.parametrize("kind", sorted(TOPOLOGIES.keys() - {"edges"}))
def test_one_mixing_brings_the_nodes_together_by_it_and_the_worst_case_by_no_more(kind):
    w = rows(kind, 16)
    matrix, rate = np.array([[w[i].get(j, 0) for j in w] for i in w]), 1 - spectral_gap(w)
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=16)
        x -= x.mean()
        assert np.linalg.norm(matrix @ x) <= rate * np.linalg.norm(x) + 1e-12
    for _ in range(500):  # the power method, kept clear of the mean
        x = matrix @ (x / (np.linalg.norm(x) or 1))
        x -= x.mean()
    assert np.linalg.norm(x) == pytest.approx(rate, abs=1e-6)
