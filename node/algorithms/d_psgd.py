"""D-PSGD: decentralized parallel SGD, a step on own data and the mean of the neighbors' models.
Lian et al., "Can decentralized algorithms outperform centralized algorithms?", arXiv 1705.09056,
algorithm 1.

    x_i ← Σ_{j∈N_i} w_ij x_j − η g_i(x_i)          g_i at the own x_i before mixing; one exchange

The gradient is the gate's release to oneself: in mode strict it is clipped and noised first (then
this is DP-D-PSGD, with one release a round whatever the degree).

Deviations
    * Weight decay λ x_i is added to g_i (post-processing); off by default, as in the paper. No
      momentum.
Reconstructions
    * none.
Not covered
    * No defense against a neighbor that lies: it enters with w_ij.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, mix
from peer.neighborhood import View


class DPsgdConfig(Schedule):
    weight_decay: float = Field(default=0.0, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i [d]."""


class DPsgd(Algorithm):
    Config = DPsgdConfig
    config: DPsgdConfig
    state: State

    def __init__(self, config: DPsgdConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone())

    def round(self, t: int, view: View) -> Conversation:
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.me).add(x, alpha=c.weight_decay)
        x = yield from mix("model", x)
        self.state = State(x=x.add(g, alpha=-step_size(t, c)))
