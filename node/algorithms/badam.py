"""BAdam: block-wise Adam, every node for itself. DECA without the neighbours, and what DECA is built on.

Luo, Yu, Li, arXiv 2404.02827. A round is one inner step on the active block; θ its parameters, g its gradient there:

    m ← a₁m + (1 − a₁)g ;  v ← a₂v + (1 − a₂)g²
    θ ← θ(1 − γλ) − γ · m/(1 − a₁^{r+1}) / (√(v/(1 − a₂^{r+1})) + ε)

Moments exist for the active block only and begin at zero whenever a block is entered; it is float32 meanwhile, the
others keep the task's type. With one block it is torch.optim.Adam (AdamW for λ > 0) to rounding.

Deviations
    * `clip_norm` bounds the block's gradient, as trainers of language models do; off by default.
Reconstructions
    * A node that comes back in the middle of a block begins with zero moments and counts r from there.
Not covered
    * Keeping moments between two visits of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from node.algorithms import Gradients
from node.maths import adam
from node.maths.adam import Moments
from node.maths.blocks import Block, Order, divided, position, visited
from node.maths.schedule import Course, rate
from peer.message import Conversation, Layout, Peer
from peer.neighborhood import Neighborhood


class BadamConfig(Moments, Course):
    layers_per_block: int = Field(default=2, ge=1)
    """Consecutive transformer layers (of other models: modules with parameters) that make up a block."""
    steps: int = Field(default=48, ge=1)
    """R: inner steps, which are rounds, before the next block is entered."""
    order: Order = "descending"
    """Of the blocks: ascending, descending (from the output down), or random, every cycle anew."""
    order_seed: int = 0
    """random: the same at all nodes, so that they agree without a message."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the block's gradient; a longer one is shortened to it. None: as it is."""


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """The whole model, flat [d], in the task's type; the active block's place as it is after the last round."""
    visit: int = -1
    """How many blocks were entered before this one; -1: none is entered."""
    taken: int = 0
    """r: steps taken since the moments were zero."""
    theta: Tensor = field(default_factory=_nothing)
    """θ: the active block in float32."""
    m: Tensor = field(default_factory=_nothing)
    v: Tensor = field(default_factory=_nothing)


class Badam:
    Config: ClassVar[type[BaseModel]] = BadamConfig
    State: ClassVar[type[State]] = State
    pooled: ClassVar[bool] = False
    staged: ClassVar[bool] = True

    def __init__(
        self,
        config: Any,
        *,
        hood: Neighborhood,
        layout: Layout,
        gradients: Gradients,
        start: Tensor,
        stages: Sequence[Sequence[str]],
    ) -> None:
        """stages: the layout's names layer by layer."""
        self.config, self.hood, self.gradients = config, hood, gradients
        self.blocks = divided(layout, stages, config.layers_per_block)
        self.state: Any = self.State(x=start.clone())
        self._within: tuple[int, Callable[[Tensor, int], Tensor]] = (-1, lambda theta, t: theta)
        """A visit, and the door to its block."""

    @classmethod
    def releases(cls, degree: int) -> int:
        """The own one."""
        return 1

    @property
    def parameters(self) -> Tensor:
        return self.state.x  # type: ignore[no-any-return]

    @property
    def lone_factor(self) -> None:
        """Alone it is block-wise Adam."""
        return None

    def round(self, t: int) -> Conversation:
        state = self.entered(t)
        half, steps = self.stepping(t, state)
        adam.exhaust(steps)
        self.keep(replace(state, theta=half, taken=state.taken + 1))
        yield from ()

    def block(self, visit: int) -> Block:
        """The one that is active in a visit."""
        c, count = self.config, len(self.blocks)
        return self.blocks[visited(c.order, position(visit * c.steps, count, c.steps), count, c.order_seed)]

    def entered(self, t: int) -> Any:
        """The state in round t's block: as the last round left it, or θ and zero moments where the visit begins."""
        state, visit = self.state, t // self.config.steps
        if visit != state.visit:
            theta = widened(state.x[self.block(visit).place])
            return self.State(x=state.x, visit=visit, theta=theta, m=torch.zeros_like(theta), v=torch.zeros_like(theta))
        return state

    def stepping(self, t: int, state: Any) -> tuple[Tensor, Iterator[int]]:
        """θ½, and the steps that fill it (`node.maths.adam.steps`); m and v of the state become m½ and v½ by them."""
        if self._within[0] != state.visit:
            self._within = (state.visit, self.gradients.within(state.x, self.block(state.visit)))
        g = adam.bounded(self._within[1](state.theta, t), self.config.clip_norm)
        lr = rate(t, self.config)
        return g, adam.steps(self.config, state.theta, state.m, state.v, g, lr=lr, taken=state.taken)

    def keep(self, state: Any) -> None:
        state.x[self.block(state.visit).place] = state.theta
        self.state = state

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return {}


def widened(x: Tensor) -> Tensor:
    """A copy of x, in float32 if it is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
