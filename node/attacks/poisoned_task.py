"""The seam of data poisoning: a task whose training examples are changed on their way to the
gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.config import RunConfig
from node.hooks import no_op
from node.task import Factored, Task, Validation, Wrapper
from peer.errors import ConfigurationError

if TYPE_CHECKING:
    from node.attacks import DataPoisoning


class PoisonedTask(Wrapper, Task):
    """A `Task` in all but its batches. Tests are the honest task's: an attacker measures itself
    truly.
    """

    _task: Task

    def __init__(self, task: Task, attack: DataPoisoning, run: RunConfig, me: str) -> None:
        self._task, self._attack, self._run, self._me = task, attack, run, me
        self.layout, self.num_examples, self.device = task.layout, task.num_examples, task.device
        self.micro_batch, self.indexes = task.micro_batch, task.indexes
        self.inputs, self.dtype, self.metrics = task.inputs, task.dtype, task.metrics
        self.layer_groups, self.adapted = task.layer_groups, task.adapted

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

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss(parameters, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss(parameters, batch)

    def factors(self) -> Factored | None:
        return self._task.factors()

    def example(self) -> tuple[Tensor, ...] | None:
        return self._task.example()

    def initial_parameters(self, seed: int) -> Tensor:
        return self._task.initial_parameters(seed)

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        return self._task.evaluate(x, yield_point)

    def to(self, device: torch.device) -> None:
        self._task.to(device)
        self.device = self._task.device

    @property
    def validation(self) -> Validation | None:
        return self._task.validation
