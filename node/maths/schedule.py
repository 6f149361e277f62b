"""Step sizes."""

from __future__ import annotations

from pydantic import Field

from node.config import Section


class Schedule(Section):
    """The step size's part of an algorithm's Config: η in round t is lr·lr_decay^⌊t/decay_every⌋."""

    lr: float = Field(default=0.1, gt=0)
    """η: step size in round 0."""
    lr_decay: float = Field(default=0.995, gt=0, le=1)
    """Factor on η after every `decay_every` rounds."""
    decay_every: int = Field(default=0, ge=0)
    """Rounds between decays of η; 0: η stays."""


def step_size(t: int, schedule: Schedule) -> float:
    """η in round t; constant when `decay_every` is 0."""
    every = schedule.decay_every
    return schedule.lr * schedule.lr_decay ** (t // every) if every else schedule.lr
