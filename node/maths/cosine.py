"""Cosine similarity S(a, b) and DPDL's calibration 𝒞 (arXiv 2606.04399, equation (4)).

Computed in float64 with torch's own summation, never by BLAS: the last bits of a BLAS dot product
depend on where the vectors lie in memory, and the simulation and a daemon must weigh their
neighbors with the same bits.
"""

from __future__ import annotations

from math import exp, sqrt

from torch import Tensor, float64


def cosine(a: Tensor, b: Tensor) -> float:
    """S(a, b) = ⟨a, b⟩/(‖a‖‖b‖) of two flat vectors [d], in [−1, 1]; 0 when a norm is 0 (an empty
    vector's too).
    """
    a, b = a.to(float64), b.to(float64)
    norms = sqrt(_inner(a, a)) * sqrt(_inner(b, b))
    return max(-1.0, min(1.0, _inner(a, b) / norms)) if norms > 0 else 0.0


def calibration(similarity: float) -> float:
    """𝒞 = 1/(1 + exp(S)): 0.269 for the same direction, 0.5 when orthogonal, 0.731 for opposite
    ones.
    """
    return 1.0 / (1.0 + exp(similarity))


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())
