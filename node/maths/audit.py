"""Does a neighbor's update help? Judged by the probability of right answers before and after it, on
the same fresh questions, so that differences are small and paired. Where a scorer says what is
right, the probability is estimated from a few answers, drawn with the same random numbers.

    evidence  S₁ ← φ S₁ + Σ_p d_p ,  S₂ ← φ S₂ + Σ_p (d_p² + σ₀²)   over the questions p of a round;
    φ = 0.8, σ₀ = 0.005
    z = S₁/√S₂ ;  convicted where z < −3, and from then on until z > 0

σ₀ is a harm too small to matter: of a model that is nearly always right all differences are tiny,
and without it an honest peer whose updates cost it a thousandth was convicted for good (24 of 3,000
verdicts in 100 rounds of a tabular test, none with it).

One bound would let a liar go without a reason: as models converge, its update hurts less and old
evidence fades, so that z returns to 0 from below. Whoever was convicted has to help.

A reconstruction (FGRPO, arXiv 2606.03094, is known from its abstract): the paper's gains are what
peers say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import median_low
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from node.config import Section

SMALLEST = 0.005
"""σ₀."""


class AuditConfig(Section):
    """How neighbors are audited."""

    questions: int = Field(default=16, ge=1, le=10_000)
    """Fresh questions a round and neighbor, of its families and as many of the own ones."""
    score: Literal["probability", "sampled"] = "probability"
    """How a model's answers are judged. probability: by that of the right one; for families with
    one right answer. sampled: of families with a scorer, by eight answers to a question, drawn with
    the same random numbers before and after the update; they are a stranger's, and the scorer reads
    them."""
    scale: float = Field(default=0.5, gt=0, le=1)
    """Share of the update that is tried: about what is applied of it; a whole one may hurt where a
    part helps."""
    forgetting: float = Field(default=0.8, ge=0, lt=1)
    """φ, of the evidence of earlier rounds."""
    convict: float = Field(default=3.0, gt=0)
    """A neighbor whose z falls below minus this has no weight."""
    acquit: float = Field(default=0.0)
    """It has weight again when its z rises above this; −3: as soon as z is no longer below −3."""
    neighbors_per_round: int | None = Field(default=None, ge=1)
    """At most so many are audited in a round, drawn anew in each, and the others keep their
    verdicts; None: all."""

    @model_validator(mode="after")
    def _lets_nobody_go_at_once(self) -> AuditConfig:
        if self.acquit < -self.convict:
            raise ValueError(
                f"acquit = {self.acquit:g} is below -convict = {-self.convict:g}, so whoever is "
                "convicted would be let go at once; raise it"
            )
        return self

    @property
    def largest_z(self) -> float:
        """|z| stays below this, whatever audits see."""
        return sqrt(self.questions / (1 - self.forgetting))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What audits saw of one peer on one kind of questions."""

    total: float = 0.0
    """S₁."""
    squares: float = 0.0
    """S₂."""

    def observe(self, differences: Tensor, config: AuditConfig) -> Evidence:
        """With a round's differences, float64 [p]; those that are not finite count as the worst."""
        d = torch.nan_to_num(differences, nan=-1.0, posinf=-1.0, neginf=-1.0)
        return Evidence(
            config.forgetting * self.total + float(d.sum()),
            config.forgetting * self.squares + float((d * d + SMALLEST**2).sum()),
        )

    @property
    def z(self) -> float:
        return self.total / sqrt(self.squares) if self.squares > 0 else 0.0


def guilty(z: float, before: bool, config: AuditConfig) -> bool:
    """The verdict on a peer that was convicted `before`, or was not."""
    return z <= config.acquit if before else z < -config.convict


def largest_norm(norms: Iterable[float], times: float = 2.0) -> float:
    """D: `times` the median of norms, the lower one of two, so that a huge one among two or three
    moves nothing; peers that stand still don't count."""
    positive = [norm for norm in norms if norm > 0]
    return times * median_low(positive) if positive else 0.0


def shortened(delta: Tensor, norm: float, most: float) -> Tensor:
    """δ, scaled to norm `most` where it is longer."""
    return delta * (most / norm) if norm > most else delta


def softmax_weights(scores: Mapping[str, float]) -> dict[str, float]:
    """Shares by plain softmax, neither clipped nor capped: what one huge claim does to them is what
    relative gains are for."""
    peers = sorted(scores)
    shares = torch.softmax(torch.tensor([scores[j] for j in peers], dtype=torch.float64), 0)
    return dict(zip(peers, shares.tolist(), strict=True))
