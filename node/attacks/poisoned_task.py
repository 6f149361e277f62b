"""The seam of data poisoning: a task whose training examples are changed on their way to the
gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.config import RunConfig
from node.task import Rebatched, Task
from peer.errors import ConfigurationError

if TYPE_CHECKING:
    from node.attacks import DataPoisoning


class PoisonedTask(Rebatched):
    """A `Task` in all but its batches. Tests are the honest task's: an attacker measures itself
    truly.
    """

    def __init__(self, task: Task, attack: DataPoisoning, run: RunConfig, me: str) -> None:
        super().__init__(task)
        self._attack, self._run, self._me = attack, run, me

    @classmethod
    def of(cls, task: Task, attack: DataPoisoning, name: str, run: RunConfig, me: str) -> Task:
        """Raises ConfigurationError: the task's examples don't have what the attack changes."""
        if why := attack.refuse(task.batch(torch.empty(0, dtype=torch.int64))):
            raise ConfigurationError(
                f"The attack {name} can't poison the examples of {run.task.name}: {why}."
            )
        return cls(task, attack, run, me)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        run = self._run
        return self._attack.poison(
            rows, self._task.batch(rows), classes=run.task.classes, seed=run.train.seed, me=self._me
        )
