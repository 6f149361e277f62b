"""Attacks on the training examples. The node then goes on honestly: it computes true gradients of
poisoned examples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from node.randomness import public_generator


class LabelFlipConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of the node's examples, drawn once for the whole run; the others keep their labels."""


class LabelFlip:
    """y ← classes − 1 − y (with ten classes 9 − y). Fang et al., "Local model poisoning attacks to
    Byzantine-robust federated learning", arXiv 1911.11815.

    Knows: its own examples.
    Deviations: `share`; the paper flips all.
    """

    Config: ClassVar[type[BaseModel]] = LabelFlipConfig

    def __init__(self, config: LabelFlipConfig) -> None:
        self.config = config

    def refuse(self, batch: tuple[Tensor, ...]) -> str:
        y = batch[-1]
        integers = not (y.is_floating_point() or y.is_complex() or y.dtype is torch.bool)
        return (
            ""
            if len(batch) > 1 and integers and y.dim() == 1
            else "they have no labels (one integer each, last)"
        )

    def poison(
        self, rows: Tensor, batch: tuple[Tensor, ...], *, classes: int, seed: int, me: str
    ) -> tuple[Tensor, ...]:
        *others, y = batch
        drawn = [
            self._drawn(public_generator(seed, me, row, "label flip")) for row in rows.tolist()
        ]
        flipped = torch.tensor(drawn, dtype=torch.bool, device=y.device)
        return (*others, torch.where(flipped, classes - 1 - y, y))

    def _drawn(self, generator: torch.Generator) -> bool:
        return float(torch.rand(1, generator=generator)) < self.config.share


class FeatureNoiseConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    std: float = Field(default=1.0, ge=0)
    """Standard deviation of the noise on every feature, as the model sees it (images: after
    task.mean and task.std).
    """


class FeatureNoise:
    """x ← x + std·z with z ~ N(0, I), drawn once for each example: a bad sensor, or a noisy client
    as in ROSS (Wang, Yuan, Li, Duan, arXiv 2411.00365).

    Knows: its own examples.
    Deviations: that paper's text was not at hand; which noise it adds is our reading.
    """

    Config: ClassVar[type[BaseModel]] = FeatureNoiseConfig

    def __init__(self, config: FeatureNoiseConfig) -> None:
        self.config = config

    def refuse(self, batch: tuple[Tensor, ...]) -> str:
        return (
            ""
            if batch[0].is_floating_point()
            else "their first tensor is no features (floating-point numbers)"
        )

    def poison(
        self, rows: Tensor, batch: tuple[Tensor, ...], *, classes: int, seed: int, me: str
    ) -> tuple[Tensor, ...]:
        x, *others = batch
        noise = torch.empty(x.shape, dtype=torch.float32)
        for place, row in enumerate(rows.tolist()):
            torch.randn(
                x.shape[1:],
                generator=public_generator(seed, me, row, "feature noise"),
                out=noise[place],
            )
        return (x + self.config.std * noise.to(x), *others)
