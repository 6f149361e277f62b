"""ROSS: robust decentralized stochastic learning with Shapley values.

Wang, Yuan, Li, Duan, arXiv 2411.00365v2 (13 January 2026). g_{j→i} is j's gradient at i's model
x_i; N_i contains i.

    φ_ij = Shapley value of j in the game v_i(S) = value of x_i − γ·mean_{j∈S} g_{j→i} on the validation set
    π_ij = φ'_ij w_ij / Σ_k φ'_ik w_ik                                      (node.maths.coalitions)
    ṽ_i  = β v_i + Σ_{j∈N_i} π_ij g_{j→i} ;  x̃_i = x_i − γ ṽ_i
    x_i ← Σ_j w_ij x̃_j ;  v_i ← Σ_j w_ij ṽ_j

Deviations
    * Weight decay λ x_i is added to the weighted gradient.
    * A gradient more than ten times as long as the own one is shortened to that, before it is
      valued.
    * In mode strict every gradient is noised by the gate, as in PDSL, which is the name for that.
    * A neighbor that adds nothing to staying put weighs w_ij at most, one that answers with zeros
      or with x_i itself
      nothing (node.maths.coalitions). By φ' alone they weigh most where all others hurt.
      null_players = "paper": so.
Reconstructions
    * The paper's text was not at hand. φ' is max(φ, 0) by default: with min-max, the likeliest
      reading, the weakest
      neighbor always weighs nothing, also an honest one. All φ' zero: π = w.
    * v is the accuracy by default; both x and v are mixed (mix_momentum); validation set as in
      [validation].
    * Who is not heard is no player, and w is renormalized over those heard where π falls back to
      it.
Not covered
    * Shapley values filter gradients, not states: a neighbor that lies in its state still enters
      with w_ij. mix_by
      "trimmed_mean" bears some of it; "pi" is no defense, since φ never sees the state.
    * A neighbor that knows the validation set can please it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Gradients
from node.maths.coalitions import (
    ShapleyConfig,
    ShapleyWeights,
    UtilityOracle,
    clip_relative_norms,
    mixing_rule,
    shapley_weights,
)
from node.maths.mixing import weighted_sum
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Ask, Conversation, Layout, Mix, Peer
from peer.neighborhood import Neighborhood


class RossConfig(Schedule, ShapleyConfig):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the weighted gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]."""
    v: Tensor
    """v_i, mixed momentum [d]."""
    phi: Mapping[Peer, float] = field(default_factory=dict)
    """φ̄_ij, smoothed, of every player heard so far."""


class Ross:
    Config: ClassVar[type[BaseModel]] = RossConfig
    pooled: ClassVar[bool] = False
    validates: ClassVar[bool] = True

    def __init__(
        self,
        config: RossConfig,
        *,
        neighborhood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
        judge: UtilityOracle,
    ) -> None:
        self.config, self.neighborhood, self.gradients, self.judge = (
            config,
            neighborhood,
            gradients,
            judge,
        )
        self.state = State(x=start.clone(), v=torch.zeros_like(start))
        self.found = ShapleyWeights({}, {}, {})

    @classmethod
    def releases(cls, degree: int) -> int:
        """An answer to every neighbor, and the own one."""
        return degree + 1

    @property
    def parameters(self) -> Tensor:
        return self.state.x

    @property
    def local_sgd_scale(self) -> float:
        """A node without neighbors is momentum SGD: its own gradient's share is 1."""
        return 1.0

    def round(self, t: int) -> Conversation:
        c, me, x, eta = self.config, self.neighborhood.me, self.state.x, step_size(t, self.config)
        cross = yield Ask("model", x, answer=lambda j, x_j: self.gradients(x_j, t, j))
        cross = clip_relative_norms({**cross, me: self.gradients(x, t, me)}, me)
        how = {
            "me": me,
            "weight": self.neighborhood.weight,
            "before": self.state.phi,
            "step": eta,
            "seed": f"{me} {t}",
        }
        self.found = shapley_weights(c, self.judge, x, cross, **how)  # type: ignore[arg-type]
        g = weighted_sum(self.found.pi, cross).add_(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=eta)
        rule = mixing_rule(c, self.found.pi)
        if c.mix_momentum:
            x, v = yield Mix("state", (x, v), rule)
        else:
            x = yield Mix("state", x, rule)
        self.state = State(x=x, v=v, phi=self.found.smooth)

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        """φ (of the last round alone) and π of every neighbor heard in it."""
        named = {"shapley": self.found.phi, "weight": self.found.pi}
        return {
            kind: {j: value for j, value in of.items() if j != self.neighborhood.me}
            for kind, of in named.items()
        }
