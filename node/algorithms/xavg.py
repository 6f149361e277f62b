"""Plain cross-averaging: the W-weighted mean of the neighbors' gradients at one's own model, with
momentum.

The control for DPDL, PDSL and ROSS, which exchange the same things and weigh them: what the mere
exchange of cross-gradients brings must not be credited to the weights. g_{j→i} is j's gradient at
x_i, N_i contains i.

    g_i = Σ_{j∈N_i} π_ij g_{j→i} with π_ij = w_ij
    ṽ_i = β v_i + g_i ;  x̃_i = x_i − η ṽ_i
    v_i ← Σ_j w_ij ṽ_j ;  x_i ← Σ_j w_ij x̃_j

Every gradient is the gate's release, the own one too: in mode strict all are clipped and noised
first (DP-xavg).

Deviations
    * Weight decay λ x_i is added to g_i (post-processing).
Reconstructions
    * No paper of its own. When a neighbor is not heard, π_ij = w_ij / Σ_{k heard} w_ik, so that g_i
      stays a mean.
Not covered
    * No defense against a neighbor that lies, in its gradient or in its state: both enter with
      w_ij.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.mixing import weighted_sum
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Peer, ask, mix
from peer.neighborhood import View


class XavgConfig(Schedule):
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


class Xavg(Algorithm):
    Config = XavgConfig
    ANSWERS = True
    config: XavgConfig
    state: State

    def __init__(self, config: XavgConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))

    def round(self, t: int, view: View) -> Conversation:
        c, me, x = self.config, self.me, self.state.x
        answers = yield from ask("model", x, lambda j, x_j: self.gradients(x_j, t, j))
        cross = {**answers, me: self.gradients(x, t, me)}
        g = mean(view.neighborhood.weight, cross).add_(x, alpha=c.weight_decay)
        x, v = momentum_step(x, self.state.v, g, beta=c.beta, lr=step_size(t, c))
        x, v = yield from mix("state", (x, v))
        self.state = State(x=x, v=v)


def mean(weight: Mapping[Peer, float], cross: Mapping[Peer, Tensor]) -> Tensor:
    """Σ_j π_ij g_{j→i} [d] over those heard, me included; `weight` is the row of W."""
    heard = sum(weight[j] for j in sorted(cross))
    return weighted_sum({j: weight[j] / heard for j in cross}, cross)
