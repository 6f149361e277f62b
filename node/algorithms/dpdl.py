"""DPDL: differentially private decentralized learning with calibrated cross-gradients, those of a
node's own model on its neighbors' data.

Yuan, Xiao, Wang, Li, arXiv 2606.04399 (3 June 2026). Equations (3)–(7); (1) and (2), clipping and
noise, belong to the gate at the data. g̈_{j→i} is j's gradient at i's model x_i, clipped and noised
by j; N_i contains i itself.

    (4) 𝒞_ij = 1/(1 + exp S(g̈_{j→i}, own))
    (5) g̃_i  = Σ_{j∈N_i} g̈_{j→i}/(√w_ij·N) + α·w_ij·𝒞_ij·own        then  g̃_i += λ x_i
    (6) ṽ_i  = β v_i + g̃_i ;  x̃_i = x_i − η ṽ_i
    (7) v_i ← Σ_j w_ij ṽ_j ;  x_i ← Σ_j w_ij x̃_j

Deviations
    * own is the clean ĝ_ii in the paper. Here that is privacy mode "paper"; in "strict" (the
      default) it is the noised release g̈_ii, so that all that is sent later is post-processing.
      The first term of (5) is noised in both.
    * granularity "vector" is the paper's text; the authors' public code computes (4)–(5) per
      parameter tensor.
    * scale "normalized" divides g̃ (α part included) by Σ 1/(N√w_ij), which under "paper" is √N on
      a uniform full graph and 0.52 on a ring of ten: with it a learning rate carries over between
      topologies.
    * lr_decay counts rounds, not epochs, and is off by default; the authors' ×0.995 every 3 epochs
      is decay_every = 30 with their 10 minibatches an epoch.
Reconstructions
    * The paper does not say what happens when a neighbor is not heard: both its terms in (5) are
      dropped, w and N stay, and "normalized" divides by the sum over those heard. S is 0 (so 𝒞 =
      0.5) when a norm is 0.
Not covered
    * No defense against a neighbor that lies: 𝒞 only sets how much of the OWN gradient is added for
      an edge.
    * At strong privacy the noise is longer than the gradient (‖noise‖ ≈ σC√d/B), the cosine is ≈ 0
      and every 𝒞 ≈ 0.5: the calibration fades exactly when ε is small. `diagnostics` shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.config import PaperCalibrated
from node.figures import Diagnostic
from node.maths.cosine import calibration, cosine
from node.maths.mixing import accumulate, accumulator
from node.maths.schedule import Schedule, step_size
from peer.message import Conversation, Peer, ask, mix
from peer.neighborhood import Neighborhood, View


class DpdlConfig(Schedule, PaperCalibrated):
    """Defaults are those of the authors' public code."""

    alpha: float = Field(default=1.5, ge=0)
    """α: weight of the own gradient added per edge in (5). 0 leaves plain cross-averaging by
    1/√w.
    """
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    lr: float = Field(default=0.1, gt=0)
    """η: step size in round 0. With scale "paper" a full graph needs one √N smaller than a ring."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to g̃ after (5), never before clipping (post-processing: it costs no
    privacy).
    """
    granularity: Literal["vector", "tensor"] = "vector"
    """S and 𝒞 over the whole vector (the paper), or per parameter tensor, weight and bias apart
    (the authors' code).
    """
    scale: Literal["paper", "normalized"] = "paper"
    """paper: g̃ as in (5). normalized: g̃ divided by Σ_j 1/(N√w_ij) over those heard."""

    def paper_sigma(
        self, receiver: Neighborhood, *, rate: float, rounds: int, epsilon: float, delta: float
    ) -> float:
        """σ_i by the paper's own formula: the multiplier with which i's neighbors (and i) noise
        what they send TO the receiver i.

        σ_i = base·(1/√w_ii + N·α)/√(Σ_{j∈N_i} 1/w_ij) with base = q√(T ln(1/δ))/ε. NOT what an
        accountant says, see the documentation of privacy mode "paper".
        """
        weight = receiver.weight
        base = rate * sqrt(rounds * log(1 / delta)) / epsilon
        swing = 1 / sqrt(weight[receiver.me]) + receiver.nodes * self.alpha
        return base * swing / sqrt(sum(1 / weight[j] for j in sorted(weight)))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]."""
    v: Tensor
    """v_i, mixed momentum [d]."""


class Dpdl(Algorithm):
    Config = DpdlConfig
    DIAGNOSTICS = (
        Diagnostic("calibration", "DPDL's calibration weight of a neighbor's gradient."),
        Diagnostic("cosine", "Cosine of a neighbor's gradient and the own one."),
    )
    ANSWERS = True
    config: DpdlConfig
    state: State

    def __init__(self, config: DpdlConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))
        self.places = [slice(None)]
        if config.granularity == "tensor":
            self.places = [place for _, _, place in resources.layout.slices()]
        self.similarity: Mapping[Peer, Sequence[float]] = {}

    def round(self, t: int, view: View) -> Conversation:
        """The whole paper."""
        c, me, x = self.config, self.me, self.state.x
        answers = yield from ask("model", x, lambda j, x_j: self.gradients(x_j, t, j))
        cross = {**answers, me: self.gradients(x, t, me)}
        own = self.gradients.own(x, t)
        g = self.aggregate(view.neighborhood, cross, own).add_(x, alpha=c.weight_decay)  # (4) (5)
        v = g.add_(self.state.v, alpha=c.beta)  # (6)
        x = x.add(v, alpha=-step_size(t, c))
        x, v = yield from mix("state", (x, v))  # (7)
        self.state = State(x=x, v=v)

    def aggregate(
        self, neighborhood: Neighborhood, cross: Mapping[Peer, Tensor], own: Tensor
    ) -> Tensor:
        """g̃ [d] of (5) over those heard, me included; their cosines are kept for `diagnostics`."""
        weight, nodes = neighborhood.weight, neighborhood.nodes
        self.similarity = {
            j: [cosine(cross[j][place], own[place]) for place in self.places] for j in sorted(cross)
        }
        g = accumulator(own)
        for j, similarities in self.similarity.items():
            accumulate(g, cross[j], 1 / (sqrt(weight[j]) * nodes))
            for place, s in zip(self.places, similarities, strict=True):
                accumulate(g[place], own[place], self.config.alpha * weight[j] * calibration(s))
        return g if self.config.scale == "paper" else g.div_(scale(neighborhood, cross))

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        """S and 𝒞 of every neighbor heard in the last round; with granularity "tensor" the mean
        over tensors.
        """
        heard = {j: s for j, s in self.similarity.items() if j != self.me}
        return {
            "cosine": {j: _mean(s) for j, s in heard.items()},
            "calibration": {
                j: _mean([calibration(value) for value in s]) for j, s in heard.items()
            },
        }


def scale(neighborhood: Neighborhood, heard: Collection[Peer]) -> float:
    """Σ_{j heard} 1/(N√w_ij), by which the effective step depends on the topology."""
    return sum(1 / (sqrt(neighborhood.weight[j]) * neighborhood.nodes) for j in sorted(heard))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
