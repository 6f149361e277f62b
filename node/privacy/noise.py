"""Noise on an integer grid: equation (2) of DPDL, without the low bits that betray floating-point
noise.

The clipped sum and the Gaussian noise are each rounded to multiples of the grid 2^-20·σ·C, added as
integers, and only then divided by B. What leaves is a rounding of (integers + continuous Gaussian),
so the Gaussian mechanism's guarantee holds with the sensitivity of the rounded sum: C(1 + SLACK) +
√d·grid. `effective` maps the nominal multiplier σ (noise of std σC) to the one that is accounted.
Not covered: it is a rounded Box–Muller Gaussian from 53-bit uniforms, not the exact discrete
Gaussian; its tails end at 8.57 σC.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from node.maths.clipping import SLACK
from node.randomness import BLOCK, Stream
from peer.errors import ConfigurationError

STEPS = 1 << 20
"""Grid points per standard deviation of the noise."""

TAIL = 6.0
"""‖z‖ of a standard normal z [d] is beyond √d + t with probability e^(−t²/2) at most."""

_LARGEST = 2.0**62
"""Sums beyond this many grid points are clamped (never within reach of a sane σ): keeps int64 from
wrapping.
"""


def grid(sigma: float, clip: float) -> float:
    """The grid's step, σC/2^20, in the gradient's unit."""
    return sigma * clip / STEPS


def noised(total: Tensor, sigma: float, clip: float, stream: Stream) -> npt.NDArray[np.int64]:
    """round(total/grid) + round(z/grid), z ~ N(0, σ²C² I): int64 [d], in units of `grid(sigma,
    clip)`.

    `total` is the clipped sum, float64 [d]; `stream` is used up. d may be anything, σ and C must be
    positive.
    """
    if not (sigma > 0 and clip > 0 and bool(total.isfinite().all())):
        raise ValueError("noise needs a positive sigma and clip, and a finite sum")
    points = np.empty(total.numel(), dtype=np.int64)
    for start in range(0, len(points), BLOCK):
        block = total[start : start + BLOCK].numpy() / grid(sigma, clip)
        np.rint(np.clip(block, -_LARGEST, _LARGEST, out=block), out=block)
        points[start : start + BLOCK] = block
        points[start : start + BLOCK] += np.rint(stream.normal(len(block)) * STEPS).astype(np.int64)
    return points


def release(total: Tensor, sigma: float, clip: float, divisor: int, stream: Stream) -> Tensor:
    """g̈ = (Σ_b ĝ_b + z)/B, flat float32 [d]; B is the public divisor."""
    points = torch.from_numpy(noised(total, sigma, clip, stream))
    return points.mul(grid(sigma, clip) / divisor).to(torch.float32)


def held(total: Tensor, most: float) -> Tensor:
    """A sum of clipped gradients, float64 [d], shortened in place to the norm `most`.

    A projection onto a ball moves no two points apart, so one example still changes the sum by C at
    most.
    """
    norm = float(torch.linalg.vector_norm(total))
    return total if norm <= most else total.mul_(most / norm)


def largest(most: float, sigma: float, clip: float, divisor: int, d: int) -> float:
    """Largest norm of a release of d parameters whose sum was `held` to `most`; one in 10⁸ has a
    longer noise.
    """
    return (most + sigma * clip * (math.sqrt(d) + TAIL)) / divisor


def effective(sigma: float, d: int) -> float:
    """The multiplier that is accounted for a nominal one: noise over the sensitivity of d rounded
    sums.
    """
    return sigma / (1.0 + SLACK + math.sqrt(d) * sigma / STEPS)


def nominal(sigma: float, d: int) -> float:
    """The inverse of `effective`.

    Raises:
        ConfigurationError: so many parameters need so much noise that the grid alone exceeds it.
    """
    room = 1.0 - math.sqrt(d) * sigma / STEPS
    if room <= 0.0:
        raise ConfigurationError(
            f"A noise multiplier of {sigma:.3g} for {d} parameters is beyond the noise's grid; "
            "choose a larger ε."
        )
    return sigma * (1.0 + SLACK) / room
