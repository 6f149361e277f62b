"""What a task has that is learned by reinforcement."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from node.maths.policy import Draws, Policy
from node.task import Task


class RewardedTask(Task):
    """A task with questions whose answers are rewarded."""

    generators: Sequence[str] = ()
    """Families of them that every node can make."""
    scored: Sequence[str] = ()
    """Those where more than one answer may be right, and a scorer says which."""

    @abstractmethod
    def policy(self, draws: Draws) -> Policy:
        """What answers them at one node."""
