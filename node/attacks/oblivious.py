"""Lies that need nobody else's messages."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from node.attacks.byzantine import MessageAttack, MessageAttackConfig, OutgoingVector


class SignFlipConfig(MessageAttackConfig):
    factor: float = Field(default=1.0, gt=0)
    """The truth is multiplied by −factor."""


class SignFlip(MessageAttack):
    """−factor·truth. Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-robust stochastic aggregation
    methods", arXiv 1811.03761.

    Knows: nothing but its own gradient.
    Deviations: of the parameters the step is flipped (`of`).
    """

    Config = SignFlipConfig
    listens = False
    config: SignFlipConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        return -self.config.factor * vector.truth


class ScalingConfig(MessageAttackConfig):
    factor: float = 10.0
    """The truth is multiplied by factor."""


class Scaling(MessageAttack):
    """factor·truth: one node outvotes the others. Bagdasaryan et al., "How to backdoor federated
    learning", arXiv 1807.00459.

    Knows: nothing but its own gradient.
    Deviations: what is scaled is the honest step, there is no backdoor in it.
    """

    Config = ScalingConfig
    listens = False
    config: ScalingConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        return self.config.factor * vector.truth


class GaussianConfig(MessageAttackConfig):
    std: float = Field(default=1.0, ge=0)
    """Standard deviation of every coordinate."""


class Gaussian(MessageAttack):
    """std·z with z ~ N(0, I), fresh for every vector, instead of the truth. Blanchard et al.,
    "Machine learning with adversaries", arXiv 1703.02757 (their std is 200).

    Knows: nothing.
    Deviations: the draws are public (train.seed), so that runs repeat.
    """

    Config = GaussianConfig
    listens = False
    config: GaussianConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        truth = vector.truth
        return torch.randn(truth.shape, dtype=truth.dtype, generator=vector.draw()).mul_(
            self.config.std
        )


class Zero(MessageAttack):
    """Zeros: a free rider, which contributes no gradient and no step of its own, and benefits from
    mixing. Lin, Du, Liu, "Free-riders in federated learning", arXiv 1911.12560.

    Knows: nothing.
    Deviations: the work is done nevertheless (see `byzantine`). With of = "value" the parameters
    are zeros too.
    """

    Config = MessageAttackConfig
    listens = False
    config: MessageAttackConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        return torch.zeros_like(vector.truth)
