"""DMSGD: decentralized SGD with momentum, which is mixed as well as the model. Yu, Jin, Yang, "On
the linear speedup analysis of communication efficient momentum SGD for distributed non-convex
optimization", arXiv 1905.03817.

    ṽ_i = β v_i + g_i(x_i) ;  x̃_i = x_i − η ṽ_i           one exchange, of twice the model
    v_i ← Σ_j w_ij ṽ_j ;  x_i ← Σ_j w_ij x̃_j

The gradient is the gate's release to oneself: in mode strict it is clipped and noised first (then
this is DP-DMSGD, with one release a round whatever the degree).

Deviations
    * Weight decay λ x_i is added to g_i (post-processing).
Reconstructions
    * The paper's text was not at hand; papers that use the name differ in what they mix. Here both
      x and v are mixed in every round, as in (7) of DPDL, whose baseline this is.
Not covered
    * No defense against a neighbor that lies: it enters with w_ij, its momentum too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, mix
from peer.neighborhood import View


class DmsgdConfig(Schedule):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]."""
    v: Tensor
    """v_i, mixed momentum [d]."""


class Dmsgd(Algorithm):
    Config = DmsgdConfig
    config: DmsgdConfig
    state: State

    def __init__(self, config: DmsgdConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))

    def round(self, t: int, view: View) -> Conversation:
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.me).add(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=step_size(t, c))
        x, v = yield from mix("state", (x, v))
        self.state = State(x=x, v=v)
