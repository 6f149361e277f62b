"""The seam of policy attacks: between an honest algorithm and its policy stands another policy,
which learns the wrong thing, or nothing. All that follows is honest, but for the reward that it
claims.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from node.attacks.claims import ClaimConfig
from node.maths.grpo import GrpoConfig
from node.maths.policy import Policy, PolicyGradient, Rollouts


class PolicyAttack(ABC):
    Config: ClassVar[type[ClaimConfig]]

    @abstractmethod
    def hacked(self, policy: Policy) -> Policy:
        """The policy to learn with instead."""


class HackedPolicy:
    """Another policy, but for its claims."""

    def __init__(self, policy: Policy, config: ClaimConfig) -> None:
        self._policy, self._config = policy, config
        self._claims = 0
        self.families, self.evaluation = policy.families, policy.evaluation
        self.questions, self.vocabulary = policy.questions, policy.vocabulary

    @property
    def tokens_read(self) -> int:
        return self._policy.tokens_read

    @property
    def scorer_failures(self) -> int:
        return self._policy.scorer_failures

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        return self._policy.rollouts(x, config, t, step)

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
        """Asked once a round, before the local steps. A process that starts again claims anew."""
        self._claims += 1
        return self._config.claimed(self._policy.reward(x), self._claims - 1)

    def fixed(self, x: Tensor) -> Tensor:
        return self._policy.fixed(x)

    def audit_seed(self, t: int, commitment: bytes) -> int:
        return self._policy.audit_seed(t, commitment)

    def knows(self, families: Sequence[str]) -> bool:
        return self._policy.knows(families)

    def right(self, x: Tensor, families: Sequence[str], seed: int, count: int) -> Tensor:
        return self._policy.right(x, families, seed, count)
