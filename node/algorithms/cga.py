"""CGA: cross-gradient aggregation, the own gradient projected until it agrees with every
neighbor's. Esfandiari, Tan, Jiang, Balu, Herron, Hegde, Sarkar, "Cross-gradient aggregation for
decentralized learning from non-IID data", arXiv 2103.02051, algorithm 1.

    g_{j→i}  the gradient of j's loss at i's model, computed by j; j ≠ i
    g̃_i = argmin ½‖g̃ − g_ii‖²  s.t.  ⟨g̃, g_{j→i}⟩ ≥ 0 for every neighbor j  (`node.maths.projection`)
    v_i ← β v_i − η g̃_i ;  x_i ← Σ_j w_ij x_j + v_i                                   v is not mixed

A step that harms nobody to first order; where all agree it is the own gradient. All gradients are
the gate's: in mode strict they are clipped and noised first (then this is DP-CGA, with deg + 1
releases a round).

Deviations
    * The authors' public code weighs the gradients by w before the program, asks for multipliers
      of 0.5 at least (so some of every neighbor's gradient is added always) and solves one per
      parameter tensor. Here it is the program as it is written, over the whole vector.
    * x is sent twice, as the question and to be mixed: 3·d floats per neighbor, not 2·d. A Mix
      agrees with the other end on lost edges; a question that was answered does not.
    * Weight decay λ x_i is added to g̃ (post-processing).
    * v holds steps, not gradients, as in the paper: when η decays, old steps keep the η they were
      made with.
Reconstructions
    * The paper's text was not at hand: the program is as others state it, the deviations are from
      the authors' code.
    * A neighbor that is not heard constrains nothing. So does a gradient that is zero.
Not covered
    * v stays at home, so nodes are further apart than with DMSGD, and with noise in v the more so.
    * With strong noise all cosines are ≈ 0: half of the constraints are active by chance, and what
      the projection takes away is noise rather than conflict.
    * No defense against a neighbor that lies: one answer opposite to the own gradient cancels it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.figures import Diagnostic
from node.maths.projection import project
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Peer, ask, mix
from peer.neighborhood import View


class CgaConfig(Schedule):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the projected gradient, after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i [d]."""
    v: Tensor
    """v_i, the last step, own [d]."""


class Cga(Algorithm):
    Config = CgaConfig
    DIAGNOSTICS = (
        Diagnostic("cosine", "Cosine of a neighbor's gradient and the own one."),
        Diagnostic("multiplier", "Of the neighbor's constraint, in units of ‖g‖/‖g_j‖; 0: none."),
    )
    ANSWERS = True
    config: CgaConfig
    state: State

    def __init__(self, config: CgaConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))
        self.figures: Mapping[str, Mapping[Peer, float]] = {}

    def round(self, t: int, view: View) -> Conversation:
        c, x = self.config, self.state.x
        cross = yield from ask("model", x, lambda j, x_j: self.gradients(x_j, t, j))
        projection = project(self.gradients(x, t, self.me), cross)
        self.figures = {"cosine": projection.cosine, "multiplier": projection.multiplier}
        g = projection.vector.add_(x, alpha=c.weight_decay)
        v = self.state.v.mul(c.beta).add_(g, alpha=-step_size(t, c))
        x = yield from mix("state", x)
        self.state = State(x=x.add(v), v=v)

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        """Of every neighbor heard in the last round: the cosine of its gradient with the own one,
        and the multiplier of its constraint (in units of ‖g‖/‖g_j‖; 0: it agreed anyway)."""
        return self.figures
