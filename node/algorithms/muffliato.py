"""Muffliato: noise once, then several rounds of accelerated gossip. Cyffers, Even, Bellet,
Massoulié, "Muffliato: peer-to-peer privacy amplification for decentralized optimization and
averaging", arXiv 2206.05091: Muffliato-SGD.

    x_i^0 = x_i − η g_i(x_i)                            g_i is the gate's: in mode strict clipped and noised, once
    x_i^{k+1} = γ Σ_j w_ij x_j^k + (1−γ) x_i^{k−1}      k = 0 … K−1, with x_i^1 = Σ_j w_ij x_j^0
    γ = 2 (1 − √(λ(1−λ/4))) / (1−λ/2)²                  λ: the spectral gap of W;  K = ⌈ln N/√λ⌉

K exchanges of the model a round average the nodes' noise almost entirely before the next gradient
is taken, and cost no privacy: all is made of one release. Mode none is decentralized SGD with K
accelerated gossip rounds.

Deviations
    * The gradient is clipped per example, on a Poisson batch; the paper supposes losses with
      bounded gradients.
    * The paper's K also grows with how different the nodes' data are, which nobody knows: the part
      ln N is kept.
    * W is the run's (Metropolis), one for the whole run; the paper allows another in every round.
    * Weight decay λ x_i is added to g_i (post-processing); off by default. No momentum, as in the
      paper.
Reconstructions
    * The paper's text was not at hand. γ and the recurrence are those of the authors' public code:
      a constant weight, which is the limit of Chebyshev's changing ones, after a first step that is
      a plain average.
Not covered
    * The paper's own gain, that nodes far away learn less (pairwise network privacy), is not
      claimed: ε holds against any coalition of other nodes.
    * γ stays when edges are lost. If both ends lose one the mean is kept, and if it is away for the
      whole round the averaging is slower, never worse than none. Lost at one end only, it moves the
      mean 1/(2−γ) times as far as in a plain Mix.
    * With a [mix] rule other than the mean γ extrapolates from what the rule gave; nothing is known
      of that.
    * No defense against a neighbor that lies: it enters K times a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Self

from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.maths.schedule import Schedule, step_size
from peer.errors import ConfigurationError
from peer.message import Conversation, mix
from peer.neighborhood import View


class MuffliatoConfig(Schedule):
    gossip: int | None = Field(default=None, ge=1)
    """K: exchanges in a round, each of the whole model; on a full graph one is exact. None: ⌈ln
    N/√λ⌉ of the graph.
    """
    spectral_gap: float | None = Field(default=None, gt=0, le=1)
    """λ: 1 − the second largest modulus of W's eigenvalues. None: of the run's graph."""
    weight_decay: float = Field(default=0.0, ge=0)
    """λ: λ·x is added to the gradient after clipping and noise."""

    def on_graph(self, spectral_gap: float, nodes: int) -> Self:
        """What is None, filled in for a graph; six digits of the gap, so that every machine finds
        the same.

        Raises:
            ConfigurationError: gossip on that graph does not average.
        """
        gap = self.spectral_gap or float(f"{spectral_gap:.6g}")
        if gap < 1e-9:
            raise ConfigurationError(
                "muffliato needs a graph on which averaging converges; the spectral gap of this W "
                "is 0: give topology.edges other weights, or another topology.kind."
            )
        return self.model_copy(
            update={
                "spectral_gap": gap,
                "gossip": self.gossip or max(1, ceil(log(nodes) / sqrt(gap))),
            }
        )


def acceleration(gap: float) -> float:
    """γ in [1, 2) for the spectral gap λ in (0, 1]: the smaller the gap, the longer the strides."""
    return 2 * (1 - sqrt(gap * (1 - gap / 4))) / (1 - gap / 2) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i [d]."""


class Muffliato(Algorithm):
    Config = MuffliatoConfig
    config: MuffliatoConfig
    state: State

    def __init__(self, config: MuffliatoConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone())

    def round(self, t: int, view: View) -> Conversation:
        c, x = self.config, self.state.x
        assert c.gossip, "Plan.of fills it in"
        gamma = acceleration(c.spectral_gap or 1.0)
        g = self.gradients(x, t, self.me).add(x, alpha=c.weight_decay)
        last = x.add(g, alpha=-step_size(t, c))
        x = yield from mix("gossip", last)
        for _ in range(c.gossip - 1):
            mixed = yield from mix("gossip", x)
            last, x = x, mixed.mul(gamma).add_(last, alpha=1 - gamma)
        self.state = State(x=x)
