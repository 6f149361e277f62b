"""What a task has that is learned by reinforcement."""

from __future__ import annotations

from abc import abstractmethod

from node.maths.policy import Draws, Policy
from node.task import Task


class RewardedTask(Task):
    """A task with questions whose answers are rewarded."""

    @abstractmethod
    def policy(self, draws: Draws) -> Policy:
        """What answers them at one node."""
