"""DSGD-Adam: every node steps with its own full Adam, and the models are averaged. The baseline of
DECA that needs 9M.

    x̃_i = x_i − γ m̂_i/(√v̂_i + ε) of Adam at x_i ;  x_i ← Σ_j w_ij x̃_j  one exchange of the model

DADAM of Nazari, Tarzanagh, Michailidis, arXiv 1901.09109, in its plain form; the moments stay at
home.

Deviations
    * Adam's bias correction, which DADAM leaves out; decoupled weight decay as in AdamW.
Not covered
    * Averaging the moments. A neighbor that lies enters with w_ij.

`DecLora`: Dec-LoRA, which is DSGD-Adam of low-rank adapters alone, beside a frozen language model
that is never sent (adapters: Hu et al., arXiv 2106.09685); A and B are averaged each for itself,
not their product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Capability, Resources
from node.maths.adam import AdamConfig, adam_steps, clip_norm_, upcast
from node.maths.schedule import WarmupDecay, rate
from peer.message import Conversation, IncrementalPayload, mix
from peer.neighborhood import View


class DsgdAdamConfig(AdamConfig, WarmupDecay):
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; a longer one is scaled to it. None: no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]; float32 where the task computes in a narrower type."""
    m: Tensor
    v: Tensor
    step: int = 0
    """Steps so far."""


class DsgdAdam(Algorithm):
    Config = DsgdAdamConfig
    config: DsgdAdamConfig
    state: State
    checkpointable = True

    def __init__(self, config: DsgdAdamConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        x = upcast(resources.start)
        self.state = State(x=x, m=torch.zeros_like(x), v=torch.zeros_like(x))

    def round(self, t: int, view: View) -> Conversation:
        c, s = self.config, self.state
        half = clip_norm_(self.gradients(s.x, t, self.me), c.clip_norm)
        self.checkpointable = False
        steps = adam_steps(c, s.x, s.m, s.v, half, lr=rate(t, c), step=s.step)
        x = yield from mix("state", IncrementalPayload(half, steps), streaming=True)
        self.state = State(x=x, m=s.m, v=s.v, step=s.step + 1)
        self.checkpointable = True


class DecLora(DsgdAdam):
    """DSGD-Adam on a model with adapters; on any other it is refused."""

    NEEDS = frozenset({Capability.ADAPTERS})
