"""The lines every comparison is drawn between: SGD without communication, SGD on everybody's data,
and SGD on the public examples alone.

`Local`: SGD of each node for itself, on its own data alone (a lower bound). `Centralized`: SGD on
all nodes' data in one place, in `simulate` only (an upper bound); it builds ONE node, with all
examples and a batch of B·N; a daemon refuses it, since it would have to see its neighbors' data.
`Public`: SGD on the public validation set and nothing private, which costs no ε; what it learned
may be the start of a private run (`train.start` with `train.public_start`).

    v ← β v + g + λ x ;  x ← x − η v      momentum as in torch.optim.SGD (no dampening, no Nesterov)

The gradient is the gate's release to oneself: clipped and noised in the modes strict and paper
(then this is DP-SGD).

Deviations
    * none of substance: with g from the plain loss the steps have the bits of torch.optim.SGD.
Not covered
    * Centralized is no protocol: it says what would be possible if data could be pooled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation
from peer.neighborhood import View


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


class Local(Algorithm):
    Config = SgdConfig
    SILENT = True
    config: SgdConfig
    state: State

    def __init__(self, config: SgdConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))

    def round(self, t: int, view: View) -> Conversation:
        """One step, without a message."""
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.me).add(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=step_size(t, c))
        self.state = State(x=x, v=v)
        yield from ()


class Centralized(Local):
    POOLED = True


class Public(Local):
    POOLED = True
    PUBLIC = True
