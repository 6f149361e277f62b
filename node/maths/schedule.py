"""Step sizes."""

from __future__ import annotations

from math import cos, pi
from typing import Literal, Self

from pydantic import Field

from node.config import AlgorithmConfig


class Schedule(AlgorithmConfig):
    """The step size's part of an algorithm's Config: η in round t is
    lr·lr_decay^⌊t/decay_every⌋.
    """

    lr: float = Field(default=0.1, gt=0)
    """η: step size in round 0."""
    lr_decay: float = Field(default=0.995, gt=0, le=1)
    """Factor on η after every `decay_every` rounds."""
    decay_every: int = Field(default=0, ge=0)
    """Rounds between decays of η; 0: η is constant."""


def step_size(t: int, schedule: Schedule) -> float:
    """η in round t; constant when `decay_every` is 0."""
    every = schedule.decay_every
    return schedule.lr * schedule.lr_decay ** (t // every) if every else schedule.lr


class WarmupDecay(AlgorithmConfig):
    """The step size's part of a Config that warms up and falls: η in round t is `lr` times what
    `share` says.
    """

    lr: float = Field(default=5e-5, gt=0)
    """γ: the largest step size."""
    warmup: int = Field(default=0, ge=0)
    """Rounds in which the step size rises linearly to `lr`."""
    decay: Literal["no", "linear", "cosine"] = "no"
    """How the step size decays to 0 afterwards."""
    decay_until: int | None = Field(default=None, ge=1)
    """Round at which it has decayed to 0; None: when the run ends."""

    def on_run(self, rounds: int) -> Self:
        """With what follows from the run's rounds."""
        return (
            self
            if self.decay_until is not None
            else self.model_copy(update={"decay_until": rounds})
        )


def rate(t: int, c: WarmupDecay) -> float:
    """γ in round t."""
    if t < c.warmup:
        return c.lr * (t + 1) / (c.warmup + 1)
    if c.decay == "no" or c.decay_until is None:
        return c.lr
    gone = min(1.0, (t - c.warmup) / max(1, c.decay_until - c.warmup))
    return c.lr * (1 - gone if c.decay == "linear" else (1 + cos(pi * gone)) / 2)
