"""Step sizes."""

from __future__ import annotations

from math import cos, pi
from typing import Literal, Self

from pydantic import Field

from node.config import AlgorithmConfig
from peer.errors import ConfigurationError


class Decay(AlgorithmConfig):
    """How a step size falls to 0, as part of an algorithm's Config."""

    decay: Literal["no", "linear", "cosine"] = "no"
    """How the step size decays to 0."""
    decay_until: int | None = Field(default=None, ge=1)
    """Round at which it has decayed to 0; None: when the run ends."""

    def on_run(self, rounds: int) -> Self:
        """With what follows from the run's rounds.

        Raises:
            ConfigurationError: rounds would be left whose step size is 0.
        """
        if self.decay == "no":
            return self
        if self.decay_until is not None and self.decay_until < rounds:
            raise ConfigurationError(
                f"algorithm.decay_until = {self.decay_until} is before the run's last round: the "
                f"others of its {rounds} would spend ε, and learn nothing; leave it out."
            )
        if self.decay_until is not None:
            return self
        return self.model_copy(update={"decay_until": rounds})


def left(t: int, c: Decay, first: int = 0) -> float:
    """The share of the step size that is left in round t, of a decay that begins in round `first`;
    in [0, 1].
    """
    if c.decay == "no" or c.decay_until is None:
        return 1.0
    gone = min(1.0, (t - first) / max(1, c.decay_until - first))
    return 1 - gone if c.decay == "linear" else (1 + cos(pi * gone)) / 2


class Schedule(Decay):
    """The step size's part of an algorithm's Config: η in round t is lr·lr_decay^⌊t/decay_every⌋,
    times what `decay` leaves of it.
    """

    lr: float = Field(default=0.1, gt=0)
    """η: step size in round 0."""
    lr_decay: float = Field(default=0.995, gt=0, le=1)
    """Factor on η after every `decay_every` rounds."""
    decay_every: int = Field(default=0, ge=0)
    """Rounds between the steps of `lr_decay`; 0: there are none."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """β: what is evaluated and exported is x̄ ← β x̄ + (1−β) x over the rounds, which costs no ε;
    0: the last x. What is exchanged is x.
    """


def step_size(t: int, c: Schedule) -> float:
    """η in round t; constant by default."""
    stairs = c.lr_decay ** (t // c.decay_every) if c.decay_every else 1.0
    return c.lr * stairs * left(t, c)


class WarmupDecay(Decay):
    """The step size's part of a Config that warms up before it falls."""

    lr: float = Field(default=5e-5, gt=0)
    """γ: the largest step size."""
    warmup: int = Field(default=0, ge=0)
    """Rounds in which the step size rises linearly to `lr`."""


def rate(t: int, c: WarmupDecay) -> float:
    """γ in round t."""
    if t < c.warmup:
        return c.lr * (t + 1) / (c.warmup + 1)
    return c.lr * left(t, c, c.warmup)
