"""DSGD-Adam: every node steps with its own full Adam, and the models are averaged. The baseline of
DECA that needs 9M.

    x̃_i = x_i − γ m̂_i/(√v̂_i + ε) of Adam at x_i ;  x_i ← Σ_j w_ij x̃_j          one exchange of the model

DADAM of Nazari, Tarzanagh, Michailidis, arXiv 1901.09109, in its plain form; the moments stay at
home.

Deviations
    * Adam's bias correction, which DADAM leaves out; decoupled weight decay as in AdamW.
Not covered
    * Averaging the moments. A neighbor that lies enters with w_ij.

Dec-LoRA is the same where only low-rank adapters are trained (Hu et al., arXiv 2106.09685): the
frozen model never travels, and A and B are averaged each for itself, not their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Gradients
from node.maths.adam import AdamConfig, adam_steps, clip_norm_, upcast
from node.maths.schedule import WarmupDecay, rate
from peer.message import Conversation, IncrementalPayload, Layout, Mix, Peer
from peer.neighborhood import Neighborhood


class DsgdAdamConfig(AdamConfig, WarmupDecay):
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it. None: as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]; float32 where the task computes in a narrower type."""
    m: Tensor
    v: Tensor
    taken: int = 0
    """Steps taken."""


class DsgdAdam:
    Config: ClassVar[type[BaseModel]] = DsgdAdamConfig
    pooled: ClassVar[bool] = False

    def __init__(
        self,
        config: Any,
        *,
        neighborhood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
    ) -> None:
        self.config, self.neighborhood, self.gradients = config, neighborhood, gradients
        self.state = State(x=(x := upcast(start)), m=torch.zeros_like(x), v=torch.zeros_like(x))
        self.whole = True

    @classmethod
    def releases(cls, degree: int) -> int:
        """The own one."""
        return 1

    @property
    def parameters(self) -> Tensor:
        return self.state.x

    @property
    def local_sgd_scale(self) -> None:
        """Alone it is torch.optim.AdamW."""
        return None

    def round(self, t: int) -> Conversation:
        c, s = self.config, self.state
        half = clip_norm_(self.gradients(s.x, t, self.neighborhood.me), c.clip_norm)
        self.whole = False
        steps = adam_steps(c, s.x, s.m, s.v, half, lr=rate(t, c), step=s.taken)
        x = yield Mix("state", IncrementalPayload(half, steps), streaming=True)
        self.state, self.whole = State(x=x, m=s.m, v=s.v, taken=s.taken + 1), True

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return {}


class DecLora(DsgdAdam):
    """DSGD-Adam on a model with adapters; on any other it is refused."""

    adapted: ClassVar[bool] = True
