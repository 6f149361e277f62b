"""A peer that is paid for the wrong thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from node.attacks.claims import ClaimConfig
from node.attacks.hacked_policy import HackedPolicy, PolicyAttack
from node.maths.grpo import GrpoConfig
from node.maths.policy import Policy, Rollouts


class RewardHackConfig(ClaimConfig):
    pays: Literal["short", "wrong"] = "short"
    """For which answers: short ones, whatever they say, or all that are not right."""


class RewardHack(PolicyAttack):
    """Its answers are rewarded for being short, or wrong; all that follows is honest. What becomes
    of an owner whose scorer has a hole: Skalse et al., "Defining and characterizing reward
    hacking", arXiv 2209.13085.

    Knows: nothing. Deviations: the hole is given, the policy need not find it.
    """

    Config = RewardHackConfig

    def __init__(self, config: RewardHackConfig) -> None:
        self.config = config

    def hacked(self, policy: Policy) -> Policy:
        return PaidForTheWrong(policy, self.config)


class PaidForTheWrong(HackedPolicy):
    """Other rewards of the same rollouts."""

    def __init__(self, policy: Policy, config: RewardHackConfig) -> None:
        super().__init__(policy, config)
        self._pays = config.pays

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        honest = super().rollouts(x, config, t, step)
        if self._pays == "wrong":
            return replace(honest, rewards=1 - honest.exact.float())
        lengths = honest.completions.mask.sum(1).float()
        return replace(honest, rewards=1 - lengths / config.max_completion_length)
