"""A task as one block of its parameters sees it, for gradients of that block alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from node import device
from node.maths.blocks import Block
from node.task import Factored, Factors, Objective, Wrapper, views


class BlockObjective(Wrapper):
    """A task as one block sees it: the other parameters stand still, at what x was when this was
    made.

    Backward stops at the block: nothing before it asks for a gradient.
    """

    _task: Objective

    def __init__(self, task: Objective, x: Tensor, block: Block) -> None:
        """x: the whole model [d], of any float type; on the task's device it is kept, a view of it
        on the CPU.
        """
        self._task, self.layout, self.num_examples = task, block.layout, task.num_examples
        self.device, self.micro_batch = task.device, task.micro_batch
        self.indexes, self.bundled = task.indexes, task.bundled
        mine = {name for name, _ in block.layout.fields}
        frozen = views(task.layout, device.onto(x.detach(), self.device))
        self._frozen = {name: value for name, value in frozen.items() if name not in mine}

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._task.batch(rows)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss({**self._frozen, **parameters}, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss({**self._frozen, **parameters}, batch)

    def factors(self) -> Factored | None:
        """Of the block's parameters, where the whole task's gradients are outer products."""
        whole = self._task.factors()
        if whole is None:
            return None
        names = [name for name, _ in self.layout.fields]

        def mine(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
            every = whole({**self._frozen, **parameters}, batch)
            return {name: every[name] for name in names}

        return mine

    def example(self) -> tuple[Tensor, ...] | None:
        return self._task.example()
