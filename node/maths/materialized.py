"""Per-example gradients that are written down, clipped and summed. Those of linear layers need not
be: node/maths/ghost.py.

Norms and sums end in float64, so that one record moves the sum by at most C(1 + SLACK).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RUN = 128
"""Squares summed in float32 before float64 takes over: error of a norm ≤ 6e-7 (plain float32: 2e-6
was measured).
"""

COLUMNS = 8192
"""Columns converted to float64 at a time (2 MiB at 32 examples)."""


def clip_and_sum(gradients: Mapping[str, Tensor], clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Clips a chunk of per-example gradients ({name: [n, *shape]}) and sums it over n: {name:
    float64 [*shape]}, and which examples were finite, bool [n].

    An example whose norm is not finite in float32 is masked, not clamped: 0·NaN would be NaN.
    """
    norm = _example_norms(gradients)
    usable = norm.isfinite()
    if not bool(usable.all()):
        gradients = {name: g[usable] for name, g in gradients.items()}
        norm = norm[usable]
    factor = (clip / norm).clamp(max=1.0)
    total = {
        name: _weighted_sum(factor, _flat(g)).view(g.shape[1:]) for name, g in gradients.items()
    }
    return total, usable


def difference(here: dict[str, Tensor], there: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """What each of a chunk's gradients ({name: [n, *shape]}), clipped, has more here than there.
    The arguments are used up.
    """
    clip_(here, clip)
    clip_(there, clip)
    return {name: here.pop(name).sub_(there.pop(name)) for name in list(here)}


def clip_(gradients: dict[str, Tensor], clip: float) -> None:
    """Clips a chunk's gradients ({name: [n, *shape]}) one by one, in their own type; one that is
    not finite becomes NaN, or zero.
    """
    norm = _example_norms(gradients)
    factor = (clip / norm).clamp(max=1.0)
    for name, g in gradients.items():
        gradients[name] = g * factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1))


def _example_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """Norm of each example's gradient over all parameters, float64 [n]."""
    norms: Tensor = torch.linalg.vector_norm(
        torch.stack([_norms(_flat(g)) for g in gradients.values()]), dim=0
    )
    return norms


def _flat(g: Tensor) -> Tensor:
    """[n, *shape] as [n, m]; a scalar parameter's has no shape."""
    return g.flatten(1) if g.dim() > 1 else g.unsqueeze(1)


def _norms(g: Tensor) -> Tensor:
    """Row norms of g [n, m], float64 [n]: float32 over runs of RUN elements, float64 over the
    runs.
    """
    n, m = g.shape
    end = m // RUN * RUN
    runs = torch.linalg.vector_norm(g[:, :end].reshape(n, -1, RUN) if end else g[:, :0], dim=-1)
    rest = torch.linalg.vector_norm(g[:, end:], dim=1)
    parts = torch.cat([runs.view(n, -1), rest.view(n, 1)], 1)
    norms: Tensor = torch.linalg.vector_norm(parts.double(), dim=1)
    return norms


def _weighted_sum(factor: Tensor, g: Tensor) -> Tensor:
    """factor [n] @ g [n, m] in float64, by blocks of columns that fit the cache."""
    blocks = (g[:, i : i + COLUMNS] for i in range(0, g.shape[1], COLUMNS))
    return torch.cat([factor @ block.to(torch.float64) for block in blocks])
