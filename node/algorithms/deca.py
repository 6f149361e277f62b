"""DECA: decentralized block-wise Adam with a discrepancy signal, for models that don't fit a full
Adam.

Yuan, Li, Wang et al., arXiv 2606.03209 (2 June 2026). One block of layers k is trained at a time,
the same one at all nodes; a round is ONE inner step. θ: the block's parameters, g: their gradient
at θ, r: steps in the block so far.

    m½ = a₁m + (1 − a₁)g ;  v½ = a₂v + (1 − a₂)g²                                     (4)
    m̂ = m½/(1 − a₁^{r+1}) ;  v̂ = v½/(1 − a₂^{r+1})                                    (5)
    θ½ = θ(1 − γλ) − γ m̂/(√v̂ + ε)                                                     (6)
    θ⁺ = Σ_j w_ij θ½_j                                                                (7)
         (by differences of the θ½: where all agree, h is the own step and nothing of rounding)
    h: the discrepancy between θ and θ⁺                                               (8)  `bma`
    m = b₁m½ + (1 − b₁)h ;  v = b₂v½ + (1 − b₂)h²                                     (9)

    reference  h = (θ − θ⁺)/max(‖θ − θ⁺‖, 1e-6), one norm over the block; b = (0.2, 0.333). As in the authors' code.
    literal    h = θ⁺ − θ, as printed; b = (0.9, 0.999). Against m's sign and in units of parameters.
    scaled  h = (θ − θ⁺)/γ · (√v̂ + ε), in units of a gradient; b = (0.9, 0.999). Without (8) and (9) where γ = 0.
    trivial  the step as above, but only the signal is carried: m ← a₁m + (1 − a₁)h, v ← a₂v + (1 − a₂)h²,
               h = (θ − θ⁺)/max(‖θ − θ⁺‖, 1). The paper's ablation.
    none       without (8) and (9).

`Badam`: BAdam, block-wise Adam of every node for itself, which is DECA without neighbors (Luo, Yu,
Li, arXiv 2404.02827); (4) to (6), and θ ← θ½.

Moments exist for the active block only and begin at zero in every block. The block is float32 while
it is active, the others keep the task's type. In memory are the model, and of the block θ, m, v,
the gradient (in whose place θ½ is written) and one sum of neighbors: M + 10M/B bytes for M bytes of
bfloat16 in B blocks. mix_every > 1 takes 2M/B more, bf16-delta 3M/B, the trivial signal 4M/B;
quorum and `mix.rule` keep the neighbors' blocks, 2M/B each or more.

Deviations
    * (5) keeps Adam's correction although (9) changes m: published so. It is not unbiased with a
      signal.
    * mix_every = s: steps without mixing have m = m½, v = v½; h then spans s steps (scaled: γ is
      their sum).
    * The gradient's norm is bounded by `clip_norm` (the authors' trainer does so too); in mode
      strict the noised one's.
    * wire = "bf16-delta" says bfloat16 of θ½ − θ and what was left over before; each receiver adds
      the mean to its own θ. It equals (7) only where the θ agree: it averages updates only, so
      existing disagreement between the θ persists. The mean is kept, as the own part is rounded
      like the sent one.
Reconstructions
    * A node that comes back in the middle of a block goes on from its checkpoint's θ, m, v and r if
      it was in that block already, otherwise from its own θ, zero moments and r = 0. h then spans
      what the others did meanwhile.
Not covered
    * A neighbor that lies in its block enters with w_ij. Blocks trained while a node was away reach
      it at their next visit; with bf16-delta what it missed, or quorum left out, stays missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Capability, Resources
from node.figures import Diagnostic
from node.maths.adam import PIECE, AdamConfig, adam_steps, clip_norm_, drain, upcast
from node.maths.blocks import Block, BlockSchedule, active_block, partition_blocks
from node.maths.schedule import WarmupDecay, rate
from peer.message import Conversation, DType, IncrementalPayload, Layout, mix
from peer.neighborhood import View

B = {"reference": (0.2, 0.333), "literal": (0.9, 0.999), "scaled": (0.9, 0.999)}
"""b₁, b₂ of (9)."""
SMALL = 1e-6
"""Least norm that the reference signal is divided by."""
UNBOUND: tuple[int, Callable[[Tensor, int], Tensor]] = (-1, lambda theta, t: theta)
"""No visit, and no gradient."""


class BadamConfig(BlockSchedule, AdamConfig, WarmupDecay):
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the block's gradient; a longer one is scaled to it. None: no bound."""


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """The whole model, flat [d], in the task's type; the active block's place as it is after the
    last round.
    """
    visit: int = -1
    """How many blocks were entered before this one; -1: none is entered."""
    step: int = 0
    """r: steps since the moments were zero."""
    theta: Tensor = field(default_factory=_nothing)
    """θ: the active block in float32."""
    m: Tensor = field(default_factory=_nothing)
    v: Tensor = field(default_factory=_nothing)
    last_mixed: Tensor | None = None
    """DECA, mix_every > 1: θ as it was mixed last in this visit."""
    rates: float = 0.0
    """DECA: Σγ since then."""
    error_feedback: Tensor | None = None
    """DECA, bf16-delta: what rounding left over."""


class Badam(Algorithm):
    """BAdam: block-wise Adam, every node for itself (Luo, Yu, Li, arXiv 2404.02827). (4) to (6),
    and θ ← θ½.
    """

    Config = BadamConfig
    SILENT = True
    DIAGNOSTICS = (
        Diagnostic("cycle", "The paper's round: visits to all blocks.", per_neighbor=False),
        Diagnostic("block", "The trained block, from 0, the embedding's end.", per_neighbor=False),
        Diagnostic("step", "Inner step of the visit, from 0.", per_neighbor=False),
    )
    NEEDS = frozenset({Capability.LAYERS})
    config: BadamConfig
    state: State
    checkpointable = True

    def __init__(self, config: BadamConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        groups = resources.layer_groups
        self.blocks = partition_blocks(resources.layout, groups, config.layers_per_block)
        self.state = State(x=resources.start.clone())
        self._within: tuple[int, Callable[[Tensor, int], Tensor]] = UNBOUND
        """A visit, and the gradient of its block."""

    def round(self, t: int, view: View) -> Conversation:
        state = self.enter(t)
        half, steps = self.adam_step(t, state)
        drain(steps)
        self.keep(replace(state, theta=half, step=state.step + 1))
        yield from ()

    def block(self, visit: int) -> Block:
        """The one that is active in a visit."""
        return active_block(self.blocks, visit, self.config)

    def span(self, t: int) -> slice:
        """Where the block of round t lies."""
        return self.block(t // self.config.steps).span

    def diagnostics(self) -> Mapping[str, float]:
        """Where the last round was: the paper's round t, block k and inner step r."""
        visit, step = self.state.visit, self.state.step
        if visit < 0:
            return {}
        return {
            "cycle": visit // len(self.blocks),
            "block": self.blocks.index(self.block(visit)),
            "step": step - 1,
        }

    def enter(self, t: int) -> State:
        """The state in round t's block: as the last round left it, or θ and zero moments where the
        visit begins.
        """
        state, visit = self.state, t // self.config.steps
        if visit == state.visit:
            return state
        state = self.state = State(x=state.x)  # what the last block needed goes first
        theta = upcast(state.x[self.block(visit).span])
        m, v = torch.zeros_like(theta), torch.zeros_like(theta)
        return State(x=state.x, visit=visit, theta=theta, m=m, v=v)

    def adam_step(self, t: int, state: State) -> tuple[Tensor, Iterator[int]]:
        """θ½ [block], and the pieces in which it is computed (`node.maths.adam`); m and v of the
        state become m½ and v½ with them.
        """
        if self._within[0] != state.visit:
            self._within = UNBOUND  # on a GPU it holds the model
            self._within = (state.visit, self.gradients.within(state.x, self.block(state.visit)))
        g = clip_norm_(self._within[1](state.theta, t), self.config.clip_norm)
        self.checkpointable = state is not self.state
        lr = rate(t, self.config)
        return g, adam_steps(self.config, state.theta, state.m, state.v, g, lr=lr, step=state.step)

    def keep(self, state: State) -> None:
        """Makes it the state, with its θ in its place in the model."""
        state.x[self.block(state.visit).span] = state.theta
        self.state = state
        self.checkpointable = True


class DecaConfig(BadamConfig):
    bma: Literal["reference", "literal", "scaled", "trivial", "none"] = "reference"
    """h, the discrepancy signal."""
    b1: float | None = Field(default=None, ge=0, le=1)
    """b₁ of (9); None: the signal's own, see above."""
    b2: float | None = Field(default=None, ge=0, le=1)
    """b₂ of (9); None: the signal's own, see above."""
    mix_every: int = Field(default=1, ge=1)
    """s: the block is mixed in every s-th step of a visit, and in its last."""
    wire: Literal["float32", "bf16-delta"] = "float32"
    """float32: θ½. bf16-delta: the change of the step, in half the bytes; the rounding error is
    sent with the next one.
    """

    @property
    def vectors(self) -> float:
        """Besides BAdam's: θ as it was mixed last; what is sent, and what rounding left over; m and
        v as they were.
        """
        unmixed = float(self.mix_every > 1)
        rounding = 1.5 * (self.wire == "bf16-delta")
        moments = 2 * (self.bma == "trivial")
        return super().vectors + unmixed + rounding + moments

    @property
    def sends(self) -> DType:
        return DType.FLOAT32 if self.wire == "float32" else DType.BFLOAT16


class Deca(Badam):
    Config = DecaConfig
    SILENT = False
    config: DecaConfig

    def round(self, t: int, view: View) -> Conversation:
        c, state = self.config, self.enter(t)
        layout = self.block(state.visit).layout
        before = state.theta if state.last_mixed is None else state.last_mixed
        carried = (state.m.clone(), state.v.clone()) if c.bma == "trivial" else (state.m, state.v)
        half, steps = self.adam_step(t, state)
        state = replace(state, step=state.step + 1, rates=state.rates + rate(t, c))
        if (t % c.steps + 1) % c.mix_every and (t + 1) % c.steps:
            drain(steps)
            self.keep(replace(state, theta=half, last_mixed=before))
            return
        if c.wire == "float32":
            block = IncrementalPayload(half, steps)
            theta = yield from mix("block", block, streaming=True, layout=layout)
        else:
            left = state.error_feedback
            left = torch.zeros_like(half) if left is None else left
            change = torch.empty_like(half, dtype=torch.bfloat16)
            delta = IncrementalPayload(change, rounded(change, left, half, before, steps))
            narrow = Layout(layout.fields, DType.BFLOAT16)
            mean = yield from mix("block", delta, streaming=True, layout=narrow)
            theta = mean.add_(before)
            state = replace(state, error_feedback=left)
        signal(c, state, before, theta, carried)
        m, v = carried
        last_mixed = theta if c.mix_every > 1 else None
        self.keep(replace(state, theta=theta, m=m, v=v, last_mixed=last_mixed, rates=0.0))


def rounded(
    change: Tensor, left: Tensor, half: Tensor, before: Tensor, steps: Iterator[int]
) -> Iterator[int]:
    """Fills change [n, bfloat16] with θ½ − θ + left; left becomes what rounding it leaves over."""
    start = 0
    for done in steps:
        here = slice(start, start + done)
        wanted = left[here].add_(half[here]).sub_(before[here])
        change[here] = wanted
        wanted.sub_(change[here])
        start += done
        yield done


def signal(
    c: DecaConfig, state: State, before: Tensor, theta: Tensor, carried: tuple[Tensor, Tensor]
) -> None:
    """(8) and (9) in place, all flat [n]: `before`, θ when it was mixed last, becomes h, and
    `carried` (m½ and v½, or m and v for the trivial signal) what is carried on. theta: θ⁺."""
    if c.bma == "none" or (c.bma == "scaled" and not state.rates):
        return
    b1, b2 = B.get(c.bma, (c.a1, c.a2))
    b1, b2 = b1 if c.b1 is None else c.b1, b2 if c.b2 is None else c.b2
    length = float(torch.linalg.vector_norm(torch.sub(before, theta, out=before)))
    scale = {"reference": 1 / max(length, SMALL), "literal": -1.0, "trivial": 1 / max(length, 1.0)}
    for h, m, v in zip(*(torch.split(each, PIECE) for each in (before, *carried)), strict=True):
        if c.bma == "scaled":
            h.mul_(v.div(1 - c.a2**state.step).sqrt_().add_(c.eps)).div_(state.rates)
        else:
            h.mul_(scale[c.bma])
        m.mul_(b1).add_(h, alpha=1 - b1)
        v.mul_(b2).addcmul_(h, h, value=1 - b2)
