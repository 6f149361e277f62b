"""Adam's step, in place and piece by piece: Kingma, Ba, arXiv 1412.6980; with decoupled decay
Loshchilov, Hutter, arXiv 1711.05101. To rounding what torch.optim.Adam and AdamW do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from node.config import Section

PIECE = 1 << 16
"""Elements stepped at a time, 256 KiB of float32."""


class AdamConfig(Section):
    """Adam's part of an algorithm's Config."""

    a1: float = Field(default=0.9, ge=0, lt=1)
    """a₁: decay of the first moment."""
    a2: float = Field(default=0.999, ge=0, lt=1)
    """a₂: decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """ε beside √v̂."""
    weight_decay: float = Field(default=0.0, ge=0)
    """λ: parameters are multiplied by 1 − ηλ in each step (AdamW)."""


def adam_steps(
    c: AdamConfig, theta: Tensor, m: Tensor, v: Tensor, g: Tensor, *, lr: float, step: int
) -> Iterator[int]:
    """One step in place, all vectors flat [d]: m and v become m½ and v½, g becomes θ½; θ stays.

    Yields after every piece how many elements it has. `step`: how many steps came before.
    """
    first = 1 - c.a1 ** (step + 1)
    second = 1 - c.a2 ** (step + 1)
    for start in range(0, len(g), PIECE):
        here = slice(start, start + PIECE)
        m[here].mul_(c.a1).add_(g[here], alpha=1 - c.a1)
        v[here].mul_(c.a2).addcmul_(g[here], g[here], value=1 - c.a2)
        scale = v[here].div(second).sqrt_().add_(c.eps)
        torch.div(m[here], scale, out=g[here])
        g[here].mul_(-lr / first).add_(theta[here], alpha=1 - lr * c.weight_decay)
        yield len(g[here])


def clip_norm_(g: Tensor, norm: float | None) -> Tensor:
    """g [d], shortened in place to that norm where it is longer."""
    if norm is None:
        return g
    length = float(torch.linalg.vector_norm(g))
    return g.mul_(norm / length) if length > norm else g


def drain(steps: Iterator[int]) -> None:
    """Runs all the steps now."""
    for _ in steps:
        pass


def upcast(x: Tensor) -> Tensor:
    """A copy of x [d], in float32 if it is narrower: steps are too small for bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
