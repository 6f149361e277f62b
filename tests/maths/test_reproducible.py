"""Arithmetic of this machine gives the same bits again. Without the setting in `node/__init__.py`
AMD's processors fail both tests.
"""

import torch

import node  # noqa: F401  (says which kernels may be used)

SIZES = ((2, 10, 1), (7, 33, 1), (1, 33, 33), (2, 10, 33), (7, 10, 10), (96, 160, 440))
OFFSETS = range(1, 17)


def test_a_products_bits_do_not_depend_on_where_its_operands_are():
    for rows, inner, columns in SIZES:
        x, w = torch.randn(rows, inner), torch.randn(inner, columns)
        for offset in OFFSETS:
            assert torch.equal(moved(x, offset) @ w, x @ w)
            assert torch.equal(x @ moved(w, offset), x @ w)


def test_equal_examples_of_a_batch_have_equal_products():
    for rows, inner, columns in SIZES:
        x, w = torch.randn(rows, inner), torch.randn(inner, columns)
        products = torch.bmm(x.repeat(16, 1, 1), w.repeat(16, 1, 1))
        assert all(torch.equal(product, products[0]) for product in products)


def moved(x: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that begins so many elements behind the beginning of an allocation."""
    place = torch.empty(x.numel() + offset)[offset:].view(x.shape)
    return place.copy_(x)
