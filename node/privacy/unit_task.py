"""A task as its privacy units see it: one example is one person with their rows.

A person's loss is the mean of the losses of at most `most` of their rows, so their gradient is the
mean of these rows' gradients: clipped, noised and accounted for as an example's, by the same code.
Which rows are drawn follows from the person's own rows and a seed of their own, whoever else is in
the batch (Charles et al., arXiv 2407.07737: user-level sampling).

Deviations
  * A person has `most` places, and whoever has fewer rows has copies in them that weigh nothing,
    so that the time a person takes does not tell how many rows they have.
  * No ghost clipping: norms of a mean of outer products come from inner products, and a neighbor's
    model under which a person's rows cancel would hide in their rounding what clipping must see.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import vmap

from node.config import TaskSection
from node.data import units
from node.task import Rebatched, Task
from peer.errors import ConfigurationError, TaskError


def by_unit(task: Task, section: TaskSection) -> Task:
    """The task of persons, where `task.unit` names whose rows are whose; else the task.

    Raises:
        ConfigurationError: the task does not say whose its examples are.
    """
    return UnitTask(task, section.rows_per_unit) if section.unit else task


class UnitTask(Rebatched):
    """A `Task` of persons."""

    def __init__(self, task: Task, most: int) -> None:
        """See `by_unit`."""
        super().__init__(task)
        whose = task.units
        if whose is None:
            raise ConfigurationError(
                "task.unit is set, but the task does not say whose its examples are; give it units "
                "(peerpoise show own-task), or leave task.unit out."
            )
        self._rows = [torch.from_numpy(rows) for rows in units.whole(whose)]
        self._most = most
        self.num_examples = len(self._rows)
        self.indexes = False  # it draws
        self.micro_batch = max(1, task.micro_batch // most) if task.micro_batch else None

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Of the persons of these numbers [n]: their places [n, most, …] in every tensor, and last
        what each place weighs, float32 [n, most].
        """
        drawn = [self._draw(self._rows[number]) for number in rows.tolist()]
        places = torch.cat([mine[torch.arange(self._most) % len(mine)] for mine in drawn])
        counts = torch.tensor([len(mine) for mine in drawn]).unsqueeze(1)
        weights = (torch.arange(self._most) < counts) / counts
        columns = self._fetch(places)
        shape = (len(rows), self._most)
        stacked = [column.reshape(*shape, *column.shape[1:]) for column in columns]
        return (*stacked, weights.to(self.device))

    def _draw(self, mine: Tensor) -> Tensor:
        if len(mine) <= self._most:
            return mine
        return mine[torch.randperm(len(mine))[: self._most]]

    def _fetch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row by row where the task may do more than index."""
        if self._task.indexes:
            return self._task.batch(rows)
        singles = [self._task.batch(row) for row in rows.view(-1, 1)]
        try:
            return tuple(torch.cat(column) for column in zip(*singles, strict=True))
        except (RuntimeError, ValueError):
            raise TaskError(
                "The task's batch(rows) gives other shapes for other rows; pad them to one length."
            ) from None

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        *columns, weights = example

        def loss(*row: Tensor) -> Tensor:
            return self._task.loss(parameters, row)

        if is_functorch_wrapped_tensor(weights):  # within vmap over persons
            losses = vmap(loss)(*columns)
        else:
            losses = torch.stack([loss(*row) for row in zip(*columns, strict=True)])
        return (losses * weights).sum()

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Over the persons; those with equally many rows at a time."""
        *columns, weights = batch
        counts = (weights > 0).sum(1)
        parts = []
        for count in sorted({*counts.tolist()}):
            mine = counts == count
            rows = tuple(column[mine, :count].flatten(0, 1) for column in columns)
            share = int(mine.sum()) / len(counts)
            parts.append(share * self._task.mean_loss(parameters, rows))
        return torch.stack(parts).sum()

    @property
    def units(self) -> None:
        """Every example is a unit by itself."""

    def factors(self) -> None:
        return None

    def example(self) -> tuple[Tensor, ...] | None:
        single = self._task.example()
        if single is None:
            return None
        places = [column.expand(self._most, *column.shape) for column in single]
        return (*places, torch.full((self._most,), 1 / self._most))
