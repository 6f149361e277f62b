"""A task as one block of its parameters sees it, for gradients of that block alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from node import device
from node.maths.blocks import Block
from node.maths.ghost import Factored, Factors
from node.task import Task, Wrapper, views


class BlockObjective(Wrapper, Task):
    """A task as one block sees it: the other parameters stand still, at what x was when this was
    made.

    Backward stops at the block: nothing before it asks for a gradient.
    """

    def __init__(self, task: Task, x: Tensor, block: Block) -> None:
        """x: the whole model [d], of any float type; on the task's device it is kept, a view of it
        on the CPU.
        """
        self._task, self.layout, self.num_examples = task, block.layout, task.num_examples
        self.device = getattr(task, "device", device.CPU)
        mine = {name for name, _ in block.layout.fields}
        frozen = views(task.layout, device.onto(x.detach(), self.device))
        self._frozen = {name: value for name, value in frozen.items() if name not in mine}

    @property
    def indexes(self) -> bool:
        return getattr(self._task, "indexes", False)

    @property
    def micro_batch(self) -> int | None:
        return getattr(self._task, "micro_batch", None)

    def to(self, device: torch.device) -> None:
        raise NotImplementedError("the whole task moves")

    def initial_parameters(self, seed: int) -> Tensor:
        raise NotImplementedError("the whole task starts")

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._task.batch(rows)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss({**self._frozen, **parameters}, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss({**self._frozen, **parameters}, batch)

    def factors(self) -> Factored | None:
        """Of the block's parameters, where the whole task's gradients are outer products."""
        factored: Factored | None = getattr(self._task, "factors", lambda: None)()
        if factored is None:
            return None
        names = [name for name, _ in self.layout.fields]

        def mine(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
            every = factored({**self._frozen, **parameters}, batch)
            return {name: every[name] for name in names}

        return mine

    def evaluate(
        self, x: Tensor, yield_point: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        raise NotImplementedError("the whole task is evaluated")
