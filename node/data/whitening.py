"""Coordinates in which public data vary alike in every direction: features for private learning.

A gradient's noise is as large in directions in which data hardly vary as in those in which they
do, and a step that is right for the former is too small for the latter. Public data know which
are which, at no ε: J. Li et al., "Private adaptive optimization with side information", ICML 2022,
arXiv 2202.05963, precondition gradients by their second moments before these are clipped, and
Amid et al., "Public data-assisted mirror descent for private model training", ICML 2022,
arXiv 2112.00193, step in their geometry. A linear layer's gradient is an outer product with its
input, so that to whiten its input does the same.

    z = (Σ + damping·λ₁·I)^(-1/2) (x − μ)      μ, Σ, λ₁: mean, covariance, largest variance of Q

Directions in which Q does not vary at all are left out: of them it says nothing, and a record that
does vary there would be little else. Where Q has fewer examples than an example has values, z is
taken along Q's examples: the same up to a rotation, in as many values as Q has examples. Both forms
are symmetric functions of a symmetric matrix, so that hosts whose arithmetic differs in the last
bits still agree: principal axes would turn and change sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peer.errors import DataError

TINY = 1e-8
"""A variance below this share of the largest one is 0 in all but rounding: values are float32."""
AT_ONCE = 256
"""Examples in a product: always as many, so that the bits of one do not depend on how many others
there are.
"""


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
            damping: a share of the largest variance; directions of less are not scaled up further.

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
        values, vectors = (each[..., values > TINY * values[-1]] for each in (values, vectors))
        scales = (values + damping * values[-1]).rsqrt()
        if few:  # x along the axes is as long as the root of its sum of squares
            scales = scales / (values * (len(x) - 1)).sqrt()
        rows = vectors * scales @ vectors.T
        return cls(mean.float(), (rows @ x if few else rows).float())

    def __call__(self, x: Tensor) -> Tensor:
        whole = x.new_empty(len(x), 1, 1, len(self.rows))
        parts = (torch.split(each, AT_ONCE) for each in (x.flatten(1), whole))
        for part, z in zip(*parts, strict=True):
            padded = functional.pad(part - self.mean, (0, 0, 0, AT_ONCE - len(part)))
            z[:, 0, 0] = (padded @ self.rows.T)[: len(part)]
        return whole

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A linear layer [m, k], [m] on z, as one [m, v], [m] on x."""
        weight = weight.double() @ self.rows.double()
        return weight.float(), (bias.double() - weight @ self.mean.double()).float()
