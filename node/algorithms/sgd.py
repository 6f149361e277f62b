"""The two lines every comparison is drawn between: SGD without communication, and SGD on
everybody's data.

`Local`: each node for itself, on its own data (the lower line). `Centralised`: the same optimizer
on the union of the data (the upper line); `simulate` builds ONE node for it, with all examples and
a batch of B·N; a daemon refuses it, since it would have to see its neighbors' data.

    v ← β v + g + λ x ;  x ← x − η v          momentum as in torch.optim.SGD (no dampening, no Nesterov)

The gradient is the gate's release to oneself: clipped and noised in the modes strict and paper
(then this is DP-SGD).

Deviations
    * none of substance: with g from the plain loss the steps have the bits of torch.optim.SGD.
Not covered
    * Centralised is no protocol: it says what would be possible if data could be pooled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Gradients
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Layout, Peer
from peer.neighborhood import Neighborhood


class SgdConfig(Schedule):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x [d]."""
    v: Tensor
    """v, momentum [d]."""


class Local:
    Config: ClassVar[type[BaseModel]] = SgdConfig
    pooled: ClassVar[bool] = False

    def __init__(
        self,
        config: SgdConfig,
        *,
        neighborhood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
    ) -> None:
        self.config, self.neighborhood, self.gradients = config, neighborhood, gradients
        self.state = State(x=start.clone(), v=torch.zeros_like(start))

    @classmethod
    def releases(cls, degree: int) -> int:
        """The own one."""
        return 1

    @property
    def parameters(self) -> Tensor:
        return self.state.x

    @property
    def local_sgd_scale(self) -> float:
        """It is the local optimizer."""
        return 1.0

    def round(self, t: int) -> Conversation:
        """One step; nothing is said."""
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.neighborhood.me).add(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=step_size(t, c))
        self.state = State(x=x, v=v)
        yield from ()

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return {}


class Centralised(Local):
    pooled: ClassVar[bool] = True
