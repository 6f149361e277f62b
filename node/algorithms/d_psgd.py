"""D-PSGD: decentralized parallel SGD. Lian et al., "Can decentralized algorithms outperform
centralized algorithms?", arXiv 1705.09056, algorithm 1.

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Gradients
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Layout, Mix, Peer
from peer.neighborhood import Neighborhood


class DPsgdConfig(Schedule):
    weight_decay: float = Field(default=0.0, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i [d]."""


class DPsgd:
    Config: ClassVar[type[BaseModel]] = DPsgdConfig
    pooled: ClassVar[bool] = False

    def __init__(
        self,
        config: DPsgdConfig,
        *,
        neighborhood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
    ) -> None:
        self.config, self.neighborhood, self.gradients = config, neighborhood, gradients
        self.state = State(x=start.clone())

    @classmethod
    def releases(cls, degree: int) -> int:
        """The own one."""
        return 1

    @property
    def parameters(self) -> Tensor:
        return self.state.x

    @property
    def local_sgd_scale(self) -> float:
        """A node without neighbors is SGD."""
        return 1.0

    def round(self, t: int) -> Conversation:
        c, x = self.config, self.state.x
        g = self.gradients(x, t, self.neighborhood.me).add(x, alpha=c.weight_decay)
        x = yield Mix("model", x)
        self.state = State(x=x.add(g, alpha=-step_size(t, c)))

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return {}
