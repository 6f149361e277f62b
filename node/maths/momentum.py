"""The momentum step, with the bits of torch.optim.SGD (no dampening, no Nesterov)."""

from __future__ import annotations

from torch import Tensor


def momentum_step(
    x: Tensor, v: Tensor, g: Tensor, *, beta: float, lr: float
) -> tuple[Tensor, Tensor]:
    """(x̃, ṽ) with ṽ = β v + g and x̃ = x − η ṽ, new vectors; all flat [d]."""
    v = v.mul(beta).add_(g)
    return x.add(v, alpha=-lr), v
