"""QG-DSGDm: decentralized SGD whose momentum follows the mixed model (quasi-global). Lin,
Karimireddy, Stich, Jaggi, "Quasi-global momentum: accelerating decentralized deep learning on
heterogeneous data", arXiv 2102.04761, algorithm 1.

    m_i  = β m̂_i + g_i(x_i)
    x_i½ = x_i − η m_i
    x_i⁺ = Σ_j w_ij x_j½                              one exchange, of the model alone
    m̂_i ← μ m̂_i + (1−μ) (x_i − x_i⁺)/η

What is remembered is where the neighborhood went, not where the own data pulled. The gradient is
the gate's release to oneself: in mode strict it is clipped and noised first, one release a round
whatever the degree.

Deviations
    * Weight decay λ x_i is added to g_i (post-processing).
Reconstructions
    * The paper's text was not at hand: μ = 0.9 by default, like β. With decay of η, the η of the
      round is the divisor.
Not covered
    * m̂ remembers what mixing did: when an edge is lost at one end only, the mean of all x goes on
      drifting for a while.
    * No defense against a neighbor that lies: it enters with w_ij, and stays in m̂.
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


class QgDsgdmConfig(Schedule):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: share of m̂ in the step."""
    mu: float = Field(default=0.9, ge=0, lt=1)
    """μ: memory of m̂. 0: m̂ is the last step of the mixed model."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]."""
    m: Tensor
    """m̂_i [d]; 0 at the start."""


class QgDsgdm(Algorithm):
    Config = QgDsgdmConfig
    config: QgDsgdmConfig
    state: State

    def __init__(self, config: QgDsgdmConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), m=torch.zeros_like(resources.start))

    def round(self, t: int, view: View) -> Conversation:
        c, x, eta = self.config, self.state.x, step_size(t, self.config)
        g = self.gradients(x, t, self.me).add(x, alpha=c.weight_decay)
        half, _ = momentum_step(x, self.state.m, g, beta=c.beta, lr=eta)
        mixed = yield from mix("model", half)
        m = self.state.m.mul(c.mu).add_(x.sub(mixed).div_(eta), alpha=1 - c.mu)
        self.state = State(x=mixed, m=m)
