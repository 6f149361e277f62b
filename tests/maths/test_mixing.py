import itertools
import random

import pytest
import torch

from node.maths.mixing import (
    accumulator,
    agreed,
    average,
    average_into,
    consensus_distance,
    materialize,
    mixed,
    weighted_sum,
)
from node.maths.schedule import Schedule, step_size
from peer.message import IncrementalPayload


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def test_the_sum_agrees_with_plain_arithmetic():
    x = {name: normal(k, 50, dtype=torch.float64) for k, name in enumerate("cab")}
    expected = 0.2 * x["a"] + 0.5 * x["b"] + 0.3 * x["c"]
    torch.testing.assert_close(
        weighted_sum({"c": 0.3, "a": 0.2, "b": 0.5}, x), expected, rtol=0, atol=1e-15
    )


def test_the_order_of_arrival_does_not_matter_and_the_order_of_summation_does():
    weight = dict.fromkeys("abcdefg", 1 / 7)
    x = {name: normal(k, 1000) for k, name in enumerate(weight)}
    expected = weighted_sum(weight, x)
    for seed in range(5):
        names = random.Random(seed).sample(sorted(weight), len(weight))
        assert torch.equal(
            weighted_sum({n: weight[n] for n in names}, {n: x[n] for n in names}), expected
        )
    renamed = {"gfedcba"["abcdefg".index(n)]: x[n] for n in x}
    assert not torch.equal(weighted_sum(weight, renamed), expected), (
        "power: another order gives other bits"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_frames_folded_as_they_come_give_the_bits_of_whole_messages(dtype):
    """Streaming and collected Mix: frames of any length, whichever neighbor's frame comes first for
    another place.
    """
    chance = random.Random(4)
    for trial in range(40):
        d = chance.randint(1, 3000)
        weight = {name: chance.random() for name in "abcd"}
        x = {name: normal(97 * trial + k, d, dtype=dtype) for k, name in enumerate(weight)}
        acc = accumulator(x["a"])
        cuts = [0, *sorted(chance.sample(range(d), min(d, 4))), d]
        for start, stop in chance.sample(list(itertools.pairwise(cuts)), len(cuts) - 1):
            frame = {name: each[start:stop] for name, each in x.items()}
            average_into(acc[start:stop], weight, frame)
        assert torch.equal(acc, average(weight, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_average_is_the_sum_and_of_equal_vectors_exactly_each_of_them(dtype):
    chance = random.Random(5)
    unequal = 0
    for trial in range(40):
        shares = {name: chance.random() for name in "abcd"}
        weight = {name: share / sum(shares.values()) for name, share in shares.items()}
        x = {name: normal(31 * trial + k, 500, dtype=dtype) for k, name in enumerate(weight)}
        plain = sum(weight[name] * x[name].double() for name in weight)
        torch.testing.assert_close(average(weight, x).double(), plain, rtol=1e-5, atol=1e-6)
        alike = dict.fromkeys(weight, x["a"])
        exactly = x["a"].to(torch.promote_types(dtype, torch.float32))
        assert torch.equal(average(weight, alike), exactly)
        unequal += not torch.equal(weighted_sum(weight, alike), exactly)
    assert unequal > 10, "power: a sum of products is off by rounding"


def test_who_alone_counts_is_the_average_whatever_the_others_are():
    x = {"a": torch.full((3,), float("inf")), "b": normal(1, 3), "c": normal(2, 3)}
    assert torch.equal(average({"a": 0.0, "b": 1.0, "c": 0.0}, x), x["b"])


def test_half_widths_are_summed_in_float32():
    x = {name: torch.full((3,), 1.0, dtype=torch.bfloat16) for name in "abc"}
    total = weighted_sum(dict.fromkeys("abc", 1 / 3), x)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, torch.ones(3))


def test_the_vectors_are_left_as_they_are():
    x = {name: normal(k, 10) for k, name in enumerate("ab")}
    before = {name: v.clone() for name, v in x.items()}
    weighted_sum({"a": 0.5, "b": 0.5}, x)
    assert all(torch.equal(x[name], before[name]) for name in x)


def test_a_vector_that_is_missing_is_an_error_of_ours():
    with pytest.raises(KeyError):
        weighted_sum({"a": 0.5, "b": 0.5}, {"a": torch.zeros(2)})


def test_tuples_are_mixed_place_by_place():
    payloads = {"a": (torch.zeros(3), torch.ones(3)), "b": (torch.ones(3), torch.ones(3) * 3)}
    x, v = mixed({"a": 0.25, "b": 0.75}, payloads, weighted_sum)
    assert torch.equal(x, torch.full((3,), 0.75))
    assert torch.equal(v, torch.full((3,), 2.5))


def test_a_vector_is_filled_once_and_to_its_end():
    x = torch.zeros(6)

    def steps():
        for k in range(3):
            x[2 * k : 2 * k + 2] += k + 1
            yield 2

    filled = materialize(IncrementalPayload(x, steps()))
    assert filled is x
    assert torch.equal(x, torch.tensor([1.0, 1, 2, 2, 3, 3]))
    with pytest.raises(AssertionError):
        materialize(IncrementalPayload(x, iter([2, 2])))


HEARD = {"a": {"b", "c"}, "b": {"a"}, "c": {"a", "b"}}
"""Who heard whom on a full graph of three: b did not hear c."""


def test_an_edge_is_mixed_only_if_each_end_heard_the_other():
    keep = {
        i: agreed(i, heard, {j: HEARD[j] for j in HEARD if j != i}) for i, heard in HEARD.items()
    }
    assert keep == {"a": {"b", "c"}, "b": {"a"}, "c": {"a"}}
    assert all((i in keep[j]) == (j in keep[i]) for i in keep for j in keep)


def test_an_edge_whose_header_did_not_come_is_not_mixed():
    assert agreed("a", {"b", "c"}, {"b": {"a"}}) == {"b"}


def test_step_sizes():
    constant = Schedule(lr=0.1, lr_decay=0.5, decay_every=0)
    assert [step_size(t, constant) for t in (0, 7)] == [0.1, 0.1]
    halving = Schedule(lr=0.1, lr_decay=0.5, decay_every=2)
    assert [step_size(t, halving) for t in range(5)] == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_consensus_distance_is_the_formula_in_float64():
    xs = [torch.tensor([1e4, 0.0]), torch.tensor([1e4 + 1e-2, 3.0]), torch.tensor([1e4, 6.0])]
    stacked = torch.stack(xs).double()
    expected = (stacked - stacked.mean(0)).square().sum(1).mean().sqrt()
    assert consensus_distance(xs) == pytest.approx(float(expected), rel=1e-12)
    assert consensus_distance([xs[0], xs[0]]) == 0
    assert consensus_distance([torch.tensor([3.0]), torch.tensor([7.0])]) == 2
