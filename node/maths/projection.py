"""The vector nearest to one's own gradient that agrees with all others: CGA's quadratic program.

    g̃ = argmin ½‖g̃ − g‖²  s.t.  ⟨g̃, g_j⟩ ≥ 0 for every j
    g̃ = g + Σ_j u_j g_j                                       with the dual's u ≥ 0

The dual is a non-negative least-squares problem, ‖g + Σ_j u_j g_j‖ → min over u ≥ 0, with one row
per parameter. All that it depends on are the inner products of the k+1 vectors, so it is solved on
a root of their matrix: k+1 rows instead of d, and one pass over the vectors. The vectors are scaled
to length 1 first (a constraint does not depend on the length of its g_j), so that the matrix holds
cosines and a neighbor's scale can't ruin its condition. Squaring costs half of float64's 16
digits; the gradients are float32 and have 7. Where directions cancel but for rounding, exact
multipliers are without bound and amplify it: a ridge of RIDGE·‖u‖² keeps g̃ no longer than g.

Inner products are sums, never BLAS, whose last bits depend on where vectors lie in memory (see
`cosine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

from node.maths.mixing import BLOCK, accumulate
from peer.message import Peer

Matrix = npt.NDArray[np.float64]

RIDGE = 1e-12
"""Multipliers of unit vectors end at 5e5, where float32's rounding (1e-7) is felt; a constraint
gives 5e-7 at most.
"""
SHORTEST = 1e-12
"""A gradient so much shorter than one's own, or longer, has no direction: it is treated as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    vector: Tensor
    """g̃ [d], of g's type; g itself (a copy) where it agrees with all."""
    multiplier: Mapping[Peer, float]
    """u_j·‖g_j‖/‖g‖ ≥ 0: how hard j's constraint pulls. 0 where it is inactive or the vector is
    zero or not finite.
    """
    cosine: Mapping[Peer, float]
    """⟨g, g_j⟩/(‖g‖‖g_j‖), in [−1, 1]; 0 where a vector is zero or not finite."""


def project(g: Tensor, others: Mapping[Peer, Tensor]) -> Projection:
    """The projection of g [d] onto the cone of all that agrees with the others ([d] each, any
    number of them).

    Vectors that are zero, not finite, or SHORTEST of the other's length constrain nothing; if g is
    such, it stays.
    """
    peers = sorted(others)
    products = _inner_products([others[j] for j in peers] + [g])
    lengths = np.sqrt(np.diagonal(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = lengths / lengths[-1]
    usable = [k for k, r in enumerate(ratio[:-1]) if SHORTEST < r < 1 / SHORTEST]
    kept = [*usable, len(peers)]
    cosines = (
        products[np.ix_(kept, kept)] / np.outer(lengths[kept], lengths[kept])
        if usable
        else np.ones((1, 1))
    )
    pull = _dual(cosines)
    multiplier, cosine = dict.fromkeys(peers, 0.0), dict.fromkeys(peers, 0.0)
    projected = g.clone() if not pull.any() else g.to(torch.float64, copy=True)
    for k, u, s in zip(usable, pull.tolist(), cosines[-1].tolist(), strict=False):
        multiplier[peers[k]], cosine[peers[k]] = u, max(-1.0, min(1.0, s))
        if u > 0:
            accumulate(projected, others[peers[k]], u / float(ratio[k]))
    return Projection(vector=projected.to(g.dtype), multiplier=multiplier, cosine=cosine)


def _dual(cosines: Matrix) -> Matrix:
    """u ≥ 0 [k] that minimizes ‖ĝ + Σ u_j ĝ_j‖² + RIDGE·‖u‖² for unit vectors with these cosines
    [k+1, k+1], ĝ last.

    Zeros, so the vector as it is, in the case (never seen) that the solver does not end.
    """
    k = len(cosines) - 1
    if k == 0 or cosines[-1, :-1].min() >= 0:
        return np.zeros(k)
    values, vectors = np.linalg.eigh(cosines + np.diag([RIDGE] * k + [0.0]))
    root = np.sqrt(values.clip(0.0))[:, None] * vectors.T  # rootᵀ·root = cosines and ridge
    try:
        u: Matrix = nnls(root[:, :-1], -root[:, -1], maxiter=100 * (k + 1))[0]
    except RuntimeError:
        return np.zeros(k)
    return u


def _inner_products(vectors: Sequence[Tensor]) -> Matrix:
    """⟨a_i, a_j⟩ of k flat vectors [d], float64 [k, k], by blocks that fit the cache."""
    k = len(vectors)
    total = torch.zeros(k, k, dtype=torch.float64)
    for start in range(0, vectors[0].numel(), BLOCK):
        block = torch.stack([a[start : start + BLOCK] for a in vectors]).double()
        for i in range(k):
            total[i, i:] += (block[i:] * block[i]).sum(1)
    symmetric: Matrix = torch.triu(total).add_(torch.triu(total, 1).T).numpy()
    return symmetric
