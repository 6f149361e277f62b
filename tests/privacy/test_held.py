"""What a release can be at most: every node's is within the public bound, whatever its data; nobody
moves it more.
"""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kit.small_task import Small, gate
from node.config import LimitsSection, PrivacySection
from node.privacy import noise
from node.privacy.ledger import Ledger
from node.rounds.bounds import Bounds, outliers
from node.rounds.buffers import Size
from peer.errors import Malformed
from peer.session.interfaces import Role

VECTORS = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(VECTORS, VECTORS, st.floats(1e-3, 1e6))
def test_what_is_held_comes_no_farther_apart(a: torch.Tensor, b: torch.Tensor, most: float) -> None:
    """So one example that moves the sum by C moves what is held by C at most."""
    apart = float((a - b).norm())
    shortened = noise.held(a.clone(), most), noise.held(b.clone(), most)
    assert all(float(it.norm()) <= most * (1 + 1e-12) for it in shortened)
    assert float((shortened[0] - shortened[1]).norm()) <= apart + 1e-9 * most


def test_a_sum_within_the_bound_keeps_its_bits() -> None:
    total = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert noise.held(total.clone(), 5.0).equal(total)
    assert noise.held(total.clone(), 2.5).tolist() == [1.5, 2.0]


@pytest.mark.parametrize("most", [1, None])
def test_a_node_with_too_many_examples_is_held_to_the_bound(
    task: Small, ledger: Ledger, most: int | None
) -> None:
    """One example's worth, with q = 1: without holding, the sum of forty is far beyond that."""
    privacy = PrivacySection(sigma=1e-3, rate=1.0, batch=1000, max_examples=most)
    bound = Bounds.of(LimitsSection(), privacy, sigma=1e-3, d=task.layout.size).norm(
        task.layout.size, Role.ANSWER
    )
    strict = gate(
        task, ledger, config_rate=1.0, config_batch=1000, sigma=1e-3, config_max_examples=most
    )
    x = 3.0 + task.initial_parameters(0)
    assert float(strict(x, 0, "b").norm()) <= bound
    if most is None:
        assert float(strict(x, 0, "b").norm()) > 3 / 1000, "power: the examples agree"


def test_the_bound_of_a_release_is_the_documented_formula() -> None:
    privacy = PrivacySection(sigma=2.0, clip=0.5, rate=0.1, batch=30)
    bounds = Bounds.of(LimitsSection(), privacy, sigma=2.0, d=400)
    assert bounds.release == pytest.approx((300 * 0.5 + 2.0 * 0.5 * (20 + 6)) / 30)
    more = privacy.model_copy(update={"max_examples": 600})
    assert Bounds.of(LimitsSection(), more, sigma=2.0, d=400).release == pytest.approx(
        (600 * 0.5 + 26) / 30
    )
    assert bounds.norm(400) == pytest.approx(1e4 * 20, rel=1e-3)
    assert bounds.norm(400, Role.ANSWER) == pytest.approx(bounds.release, rel=1e-3)
    assert Bounds.of(LimitsSection(), PrivacySection(mode="none"), sigma=0.0, d=400).release == inf


def test_the_noise_of_a_thousand_releases_is_within_its_bound() -> None:
    d, bound = 50, noise.largest(0.0, 2.0, 1.0, 1, 50)
    lengths = 2.0 * torch.randn(10_000, d, generator=torch.Generator().manual_seed(1)).norm(dim=1)
    assert float(lengths.max()) < bound
    assert float(lengths.max()) > 2.0 * (sqrt(d) + 2), "power: a shorter tail would refuse some"


def test_a_payload_is_measured_as_a_whole_in_whatever_pieces_it_comes() -> None:
    size = Size(5.0)
    size.add(torch.tensor([3.0]))
    size.add(torch.tensor([4.0]))
    assert size.norm == 5.0
    with pytest.raises(Malformed):
        size.add(torch.tensor([0.1]))
    for value in (float("nan"), inf, 3e38):
        with pytest.raises(Malformed):
            Size(inf).add(torch.tensor([value]))


def test_who_is_ten_times_as_far_as_usual_is_an_outlier() -> None:
    assert outliers({"a": 1.0, "b": 2.0, "c": 20.1, "d": 3.0}) == {"c": pytest.approx(10.05)}
    assert outliers({"a": 1.0, "b": 10.0}) == {}
    assert outliers({"a": 1.0, "b": 11.0}) == {"b": 11.0}
    assert outliers({"a": 5.0}) == outliers({}) == outliers({"a": 0.0, "b": 0.0, "c": 9.0}) == {}
