"""The seam of data poisoning: a task whose training examples are changed on their way to the
gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from node.config import RunConfig
from node.task import Task, Wrapper
from peer.errors import ConfigurationError

if TYPE_CHECKING:
    from node.attacks import DataPoisoning


class PoisonedTask(Wrapper):
    """A `Task` in all but its batches. Tests are the honest task's: an attacker measures itself
    truly.
    """

    def __init__(self, task: Task, how: DataPoisoning, run: RunConfig, me: str) -> None:
        self._task, self._how, self._run, self._me = task, how, run, me

    @classmethod
    def of(cls, task: Task, how: DataPoisoning, name: str, run: RunConfig, me: str) -> Task:
        """Raises ConfigurationError: the task's examples don't have what the attack changes."""
        if why := how.refuse(task.batch(torch.empty(0, dtype=torch.int64))):
            raise ConfigurationError(
                f"The attack {name} can't poison the examples of {run.task.name}: {why}."
            )
        return cast(Task, cls(task, how, run, me))

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        run = self._run
        return self._how.spoil(
            rows, self._task.batch(rows), classes=run.task.classes, seed=run.train.seed, me=self._me
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)
