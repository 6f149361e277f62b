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
      x and v are mixed in
      every round, as in (7) of DPDL, whose baseline this is.
Not covered
    * No defense against a neighbor that lies: it enters with w_ij, its momentum too.
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
from peer.message import Conversation, Layout, Mix, Peer
from peer.neighborhood import Neighborhood


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


class Dmsgd:
    Config: ClassVar[type[BaseModel]] = DmsgdConfig
    pooled: ClassVar[bool] = False

    def __init__(
        self,
        config: DmsgdConfig,
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
        """A node without neighbors is momentum SGD."""
        return 1.0

    def round(self, t: int) -> Conversation:
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.neighborhood.me).add(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=step_size(t, c))
        x, v = yield Mix("state", (x, v))
        self.state = State(x=x, v=v)

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return {}
