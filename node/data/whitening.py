"""Coordinates in which public data vary alike in every direction: features for private learning.

A gradient's noise is as large in directions in which data hardly vary as in those in which they
do, and a step that is right for the former is too small for the latter. Public data know which
are which, at no ε: J. Li et al., "Private adaptive optimization with side information", ICML 2022,
arXiv 2202.05963, precondition gradients by their second moments before these are clipped, and
Amid et al., "Public data-assisted mirror descent for private model training", ICML 2022,
arXiv 2112.00193, step in their geometry. A linear layer's gradient is an outer product with its
input, so that to whiten its input does the same.

    z = (Σ + damping·λ₁·I)^(-1/2) (x − μ)      μ, Σ, λ₁: mean, covariance, largest variance of Q

Where Q has fewer examples than an example has values, z is taken along Q's examples: the same up to
a rotation, in as many values as Q has examples; what lies in none of their directions is left out.
Both forms are symmetric functions of a symmetric matrix, so that hosts whose arithmetic differs in
the last bits still agree: principal axes would turn and change sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peer.errors import DataError

TINY = 1e-10
"""A variance below this share of the largest one is 0 in all but rounding."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """x [n, …] -> z [n, 1, 1, k]: a linear map, the same for every example."""

    mean: Tensor
    """[v] of the public examples; v: values of one."""
    rows: Tensor
    """[k, v]."""

    @classmethod
    def of(cls, public: Tensor, damping: float) -> Whitening:
        """Learned on public examples [n, …].

        Args:
            damping: λ as a share of the largest variance; directions of less are left alone.

        Raises:
            DataError: they are fewer than two, or all alike.
        """
        x = public.flatten(1).double()
        mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        x = x - mean
        few = len(x) < x.shape[1]
        products = x @ x.T if few else x.T @ x
        values, vectors = torch.linalg.eigh(products / max(1, len(x) - 1))
        if len(x) < 2 or not values[-1] > 0:
            raise DataError(
                "task.whiten needs public examples that differ from one another; give "
                "[validation] more of them."
            )
        scales = (values.clamp_min(0) + damping * values[-1]).rsqrt()
        if few:  # along unit vectors of examples' space, of which those without variance have none
            lengths = (values * (len(x) - 1)).clamp_min(0).sqrt()
            some = values > TINY * values[-1]
            scales = torch.where(some, scales / torch.where(some, lengths, 1.0), 0.0)
        rows = vectors * scales @ vectors.T
        return cls(mean.float(), (rows @ x if few else rows).float())

    def __call__(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) @ self.rows.T)[:, None, None]
