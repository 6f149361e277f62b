"""Step sizes."""

from __future__ import annotations


def step_size(t: int, lr: float, decay: float, every: int) -> float:
    """η in round t: lr·decay^⌊t/every⌋; constant when `every` is 0."""
    return lr * decay ** (t // every) if every else lr
