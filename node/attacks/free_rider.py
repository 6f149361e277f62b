"""A peer that never trains."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from node.attacks.claims import ClaimConfig
from node.attacks.hacked_policy import HackedPolicy, PolicyAttack
from node.maths.grpo import GrpoConfig
from node.maths.policy import Policy, PolicyGradient, Rollouts
from node.randomness import public_generator


class FreeRiderConfig(ClaimConfig):
    update: Literal["zero", "noise", "copy"] = "zero"
    """What it sends for an update: nothing; steps along noise; or along the way that its model was
    moved by others in the last round. Adam makes the latter two as long as honest ones."""


class FreeRider(PolicyAttack):
    """It never trains, and takes the model that the others make. Lin, Du, Liu, "Free-riders in
    federated learning", arXiv 1911.12560: their attacks by random and by delta weights.

    Knows: its model now and a round ago.
    Deviations: it draws answers nevertheless, for its own figures. Noise and copy are directions,
    whose length is Adam's.
    """

    Config = FreeRiderConfig

    def __init__(self, config: FreeRiderConfig) -> None:
        self.config = config

    def hacked(self, policy: Policy) -> Policy:
        return Untrained(policy, self.config)


class Untrained(HackedPolicy):
    """A gradient of nothing."""

    def __init__(self, policy: Policy, config: FreeRiderConfig) -> None:
        super().__init__(policy, config)
        self._update, self._steps = config.update, 0
        self._model: Tensor | None = None
        self._moved: Tensor | None = None
        """How far the model went in the last round; None: there was none."""

    def reward(self, x: Tensor) -> float:
        self._moved = None if self._model is None else x - self._model
        self._model = x.clone()
        return super().reward(x)

    def gradient(
        self,
        x: Tensor,
        rollouts: Rollouts,
        config: GrpoConfig,
        advantages: Tensor,
        reference: Tensor | None = None,
        *,
        on_policy: bool = True,
    ) -> PolicyGradient:
        self._steps += 1
        return PolicyGradient(
            gradient=self._pretended(x),
            entropy=0.0,
            clip_low=0.0,
            clip_high=0.0,
            kl=0.0,
            zero_spread=0.0,
            mismatch=0.0,
            seconds=0.0,
        )

    def _pretended(self, x: Tensor) -> Tensor | None:
        if self._update == "noise":
            draw = public_generator(0, "", self._steps, "free rider")
            return torch.randn(x.shape, generator=draw)
        if self._update == "copy" and self._moved is not None:
            return -self._moved
        return None
