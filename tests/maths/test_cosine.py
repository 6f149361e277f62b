from math import exp, nextafter

import pytest
import torch

from node.maths.cosine import calibration, cosine


def at_offset(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values elsewhere in memory."""
    room = torch.empty(len(x) + offset, dtype=x.dtype)[offset:]
    return room.copy_(x)


def test_it_agrees_with_torch_in_float64():
    a, b = torch.randn(2, 1001, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
    assert cosine(a, b) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("a", "b"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([0.0], [0.0]), ([], [])]
)
def test_it_is_zero_when_a_norm_is_zero(a, b):
    assert cosine(torch.tensor(a), torch.tensor(b)) == 0.0


def test_it_stays_within_one_for_parallel_vectors():
    for seed in range(50):
        a = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert 1 - 1e-12 < cosine(a, 3 * a) <= 1
        assert -1 <= cosine(a, -3 * a) < -1 + 1e-12


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_do_not_matter(scale):
    a, b = torch.randn(2, 100, generator=torch.Generator().manual_seed(2))
    assert cosine(a * scale, b) == pytest.approx(cosine(a, b), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_bits_do_not_depend_on_where_the_vectors_lie(dtype):
    """A BLAS dot product fails this where its loops depend on alignment."""
    for seed in range(10):
        a, b = torch.randn(2, 10_003, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        assert len({cosine(at_offset(a, i), at_offset(b, 7 * i % 16)) for i in range(16)}) == 1


def test_calibration_lies_between_its_two_ends():
    """(4): 𝒞 ∈ [0.269, 0.731], 0.5 when orthogonal, falling with S."""
    assert calibration(1.0) == pytest.approx(1 / (1 + exp(1)), abs=1e-15)
    assert calibration(0.0) == 0.5
    assert calibration(-1.0) == pytest.approx(0.7310585786300049, abs=1e-15)
    assert calibration(0.2) < calibration(0.1)
    assert 0.5 - calibration(nextafter(0, 1)) < 1e-15
