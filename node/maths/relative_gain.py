"""Relative gain: peers are weighted by how far each outdoes its own past, so that reward scales of
different tasks compare (FGRPO, arXiv 2606.03094; a reconstruction from its abstract).

    gain    g_j = (R̄_j − b_j)/max(s_j, 1e-8)        "z"; "ratio" divides by max(|b_j|, 1e-8)
    spread  s_j ← √EMA_λ((R̄_j − b_j)²)              with the old b_j
    base    b_j ← λ b_j + (1 − λ) R̄_j               starts at the first R̄_j
    weight  u_j = softmax(clip(g_j, −c, c)/τ), at most max(u_max, 1/n); w_ij = (1 − μ) W_ij + μ u_j

A gain is 0 until two rewards were observed. The rows of u are not doubly stochastic: the mean over
the network is not preserved, and an algorithm that mixes by w needs a pull towards consensus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, sqrt
from typing import Literal

from pydantic import Field, model_validator

from node.config import Section
from peer.message import Peer

SMALLEST = 1e-8
"""Least divisor of a gain."""
STEEPEST = 300.0
"""Most of clip/temperature."""
LARGEST = 1e100
"""Magnitude beyond which a reward is no reward: it gains least, and no baseline learns of it."""


class GainConfig(Section):
    """How rewards become weights."""

    form: Literal["z", "ratio"] = "z"
    """z: in standard deviations of the peer's own surprises; ratio: relative to its baseline."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """λ, of the moving averages of baseline and spread."""
    clip: float = Field(default=2.0, gt=0)
    """c, largest magnitude of a gain that counts."""
    temperature: float = Field(default=1.0, gt=0)
    """τ of the softmax over gains."""
    cap: float = Field(default=0.5, gt=0, le=1)
    """u_max, the largest share of one peer; below 1/n all n peers weigh the same."""
    mixing: float = Field(default=0.5, ge=0, le=1)
    """μ: 0 mixes by W alone, 1 by gains alone."""

    @model_validator(mode="after")
    def _has_exponentials(self) -> GainConfig:
        if not self.clip / self.temperature <= STEEPEST:
            raise ValueError(
                f"clip = {self.clip:g} is more than {STEEPEST:g} times temperature = "
                f"{self.temperature:g}, whose exponential is no number; lower clip"
            )
        return self


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a peer's rewards were so far."""

    observations: int = 0
    mean: float = 0.0
    """b_j, a moving average of its rewards."""
    spread: float = 0.0
    """s_j, root of the moving average of squared surprises."""

    def gain(self, reward: float, config: GainConfig) -> float:
        """g_j of this reward against the past; 0 until two were observed."""
        if not abs(reward) < LARGEST:
            return -config.clip
        if self.observations < 2:
            return 0.0
        scale = self.spread if config.form == "z" else abs(self.mean)
        return (reward - self.mean) / max(scale, SMALLEST)

    def observe(self, reward: float, config: GainConfig) -> Baseline:
        """The baseline after this reward."""
        if not abs(reward) < LARGEST:
            return self
        if self.observations == 0:
            return Baseline(1, reward, 0.0)
        surprise = (reward - self.mean) ** 2
        earlier = self.spread**2 if self.observations > 1 else surprise
        return Baseline(
            observations=self.observations + 1,
            mean=_average(self.mean, reward, config.decay),
            spread=sqrt(_average(earlier, surprise, config.decay)),
        )


def gain_weights(gains: Mapping[Peer, float], config: GainConfig) -> dict[Peer, float]:
    """u_j of every peer of `gains`, which add up to 1.

    What lies above the cap is shared among the others in proportion to theirs, until none does.
    """
    clipped = {
        j: max(-config.clip, min(config.clip, g)) if isfinite(g) else -config.clip
        for j, g in sorted(gains.items())
    }
    if config.cap * len(clipped) < 1:
        return dict.fromkeys(clipped, 1 / len(clipped))
    raw = {j: exp(g / config.temperature) for j, g in clipped.items()}
    capped: set[Peer] = set()
    while True:
        free = {j: raw[j] for j in raw if j not in capped}
        rest = 1 - config.cap * len(capped)
        total = sum(free.values())
        weights = {j: rest * free[j] / total if j in free else config.cap for j in raw}
        above = {j for j in free if weights[j] > config.cap}
        if not above:
            return weights
        capped |= above


def mixing_weights(
    row: Mapping[Peer, float], gains: Mapping[Peer, float], config: GainConfig
) -> dict[Peer, float]:
    """w_ij = (1 − μ) W_ij + μ u_j over the peers of `row`, node i's row of W; they add up to 1.

    A weight is at most (1 − μ) W_ij + μ max(u_max, 1/n), whatever one of n peers claims.
    """
    u = gain_weights({j: gains[j] for j in row}, config)
    return {j: (1 - config.mixing) * row[j] + config.mixing * u[j] for j in sorted(row)}


def _average(earlier: float, now: float, decay: float) -> float:
    return decay * earlier + (1 - decay) * now
