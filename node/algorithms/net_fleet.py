"""NET-FLEET: gradient tracking with recursive corrections. Zhang, Fang, Liu, Yang, Liu, Zhu,
"NET-FLEET: achieving linear convergence speedup for fully decentralized federated learning with
heterogeneous data", arXiv 2208.08490.

    s_i ← s_i + ∇f_i(x_i^t; ξ) − ∇f_i(x_i^{t−1}; ξ)  both on the batch ξ of round t; s_i = ∇f_i(x_i; ξ) at first
    y_i ← y_i + what s_i gained            so Σ_i y_i = Σ_i s_i: y_i tracks the mean gradient of all
    x_i ← Σ_j w_ij x_j − η y_i ;  y_i ← Σ_j w_ij y_j  one exchange, of twice the model; the step takes y before it

What differs between the nodes' data cancels in y, so a constant η leads to one point. In mode
strict (DP-NET-FLEET) the difference is ONE release: what an example's clipped gradient gained is
clipped to C again, and the sum is noised and debited like that of gradients.

Deviations
    * Noising both gradients would take two answers on one batch, σ/√2 to the accountant, and bring
      twice the noise.
    * restart, off by default: every so many rounds s_i is a fresh gradient. The noise of batches
      and of privacy adds up in s_i like a random walk, and nothing else takes it out: without
      restarts a strict run learns next to nothing (with the quickstart's data and ε), and a long
      one without noise gets worse again. 1 is gradient tracking proper.
    * mix_steps, off by default: steps are mixed too. As written above, η must be several times
      smaller than for D-PSGD where W has small or negative eigenvalues.
    * A release that is withheld takes s_i out of y_i: a node without budget is one without a
      gradient. Left in, its last gradient would keep pushing everybody.
    * Weight decay: the step is η (y_i + λ x_i), off by default. No momentum.
Reconstructions
    * The paper's text was not at hand, only its abstract ("a recursive gradient correction"). It
      takes several local steps between exchanges; here there is one, as every local step would be a
      release of its own.
Not covered
    * Gradient tracking trusts sums: a node that dies, or an edge lost at one end only, leaves its
      share in Σ y.
    * With dropout the two gradients of a difference have other masks.
    * No defense against a neighbor that lies: it enters with w_ij, its y too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Withheld, mix
from peer.neighborhood import View


class NetFleetConfig(Schedule):
    restart: int = Field(default=0, ge=0)
    """Rounds between fresh gradients instead of differences; 0: only the first. 1: gradient
    tracking.
    """
    mix_steps: bool = False
    """True: the step is taken before mixing, x_i ← Σ_j w_ij (x_j − η y_j). Stable for a several
    times larger η.
    """
    weight_decay: float = Field(default=0.0, ge=0)
    """λ: λ·x is added to y in the step, after clipping and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i^t, mixed [d]."""
    before: Tensor
    """x_i^{t−1}: where the last gradient was taken [d]."""
    y: Tensor
    """y_i, mixed: the tracked mean gradient [d]; 0 at the start."""
    s: Tensor
    """s_i, the recursive estimate of the own gradient [d]; 0: there is none yet."""


class NetFleet(Algorithm):
    Config = NetFleetConfig
    config: NetFleetConfig
    state: State

    def __init__(self, config: NetFleetConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        zero = torch.zeros_like(resources.start)
        self.state = State(
            x=resources.start.clone(), before=resources.start.clone(), y=zero, s=zero
        )

    def round(self, t: int, view: View) -> Conversation:
        c, old, gain = self.config, self.state, self.gain(t)
        y, s = old.y.add(gain), old.s.add(gain)
        step = y.add(old.x, alpha=c.weight_decay).mul_(-step_size(t, c))
        x, mixed = yield from mix("state", (old.x.add(step) if c.mix_steps else old.x, y))
        self.state = State(x=x if c.mix_steps else x.add(step), before=old.x, y=mixed, s=s)

    def gain(self, t: int) -> Tensor:
        """s_i of this round less that of the last [d]."""
        c, old = self.config, self.state
        if not old.s.any() or (c.restart and t % c.restart == 0):
            return self.gradients(old.x, t, self.me).sub(old.s)
        try:
            return self.gradients.difference(old.x, old.before, t)
        except Withheld:
            return old.s.neg()
