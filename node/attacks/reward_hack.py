"""A peer that is paid for the wrong thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from node.maths.grpo import GrpoConfig
from node.maths.policy import Policy, PolicyGradient, Rollouts


class RewardHackConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RewardHack:
    """Its answers are rewarded for being short, whatever they say; all that follows is honest. What
    becomes of an owner whose scorer has a hole: Skalse et al., "Defining and characterizing reward
    hacking", arXiv 2209.13085.

    Knows: nothing. Deviations: the hole is given, the policy need not find it.
    """

    Config = RewardHackConfig

    def __init__(self, config: RewardHackConfig) -> None:
        self.config = config

    def hacked(self, policy: Policy) -> Policy:
        """The policy with such rewards in training."""
        return HackedPolicy(policy)


class HackedPolicy:
    """Another policy, but for the rewards of its rollouts."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.families, self.evaluation = policy.families, policy.evaluation
        self.questions, self.vocabulary = policy.questions, policy.vocabulary

    @property
    def tokens_read(self) -> int:
        return self._policy.tokens_read

    @property
    def scorer_failures(self) -> int:
        return self._policy.scorer_failures

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        honest = self._policy.rollouts(x, config, t, step)
        lengths = honest.completions.mask.sum(1).float()
        return replace(honest, rewards=1 - lengths / config.max_completion_length)

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
        return self._policy.gradient(
            x, rollouts, config, advantages, reference, on_policy=on_policy
        )

    def reward(self, x: Tensor) -> float:
        return self._policy.reward(x)

    def fixed(self, x: Tensor) -> Tensor:
        return self._policy.fixed(x)

    def audit_seed(self, t: int, commitment: bytes) -> int:
        return self._policy.audit_seed(t, commitment)

    def knows(self, families: Sequence[str]) -> bool:
        return self._policy.knows(families)

    def right(self, x: Tensor, families: Sequence[str], seed: int, count: int) -> Tensor:
        return self._policy.right(x, families, seed, count)
