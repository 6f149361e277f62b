"""A task on made-up examples and parameters: what may be tried before anything private is touched, and may decide how
private examples are treated without telling anything of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import torch
from torch import Tensor

from node import device
from node.maths.ghost import Factored
from node.task import Task
from peer.message import Layout


class Rehearsal(Task):
    """The task's loss on `examples` rows of its own shape and types: floats are drawn, integers are 0, which every set
    of labels or tokens has."""

    def __init__(self, task: Task, examples: int) -> None:
        self._task, self.layout, self.examples = task, task.layout, examples
        self.device = getattr(task, "device", device.CPU)
        generator = torch.Generator().manual_seed(0)
        self._rows = [_like(column, examples, generator).to(column.device) for column in task.batch(torch.tensor([0]))]

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(column[rows.to(column.device)] for column in self._rows)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss(parameters, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss(parameters, batch)

    def factors(self) -> Factored | None:
        found: Factored | None = getattr(self._task, "factors", lambda: None)()
        return found

    def to(self, device: torch.device) -> None:
        raise NotImplementedError("the task itself moves")

    def start(self, seed: int) -> Tensor:
        return drawn(self.layout, seed)

    def evaluate(self, x: Tensor, breathe: Callable[[], None] = lambda: None) -> dict[str, float]:
        raise NotImplementedError("nothing is learnt here")


def _like(column: Tensor, n: int, generator: torch.Generator) -> Tensor:
    shape = (n, *column.shape[1:])
    if not column.dtype.is_floating_point:
        return torch.zeros(shape, dtype=column.dtype)
    return torch.randn(shape, generator=generator).to(column.dtype)


def drawn(layout: Layout, seed: int) -> Tensor:
    """Parameters, flat float32 [d], at which every unit is alive and every bit matters: matrices of random signs and
    sizes that keep a layer's scale, vectors (biases, norms) positive."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _, shape in layout.fields:
        if len(shape) > 1:
            width = sqrt(max(1, Layout((("", shape),)).size // shape[0]))
            parts.append(torch.randn(shape, generator=generator).mul_(1.5 / width).reshape(-1))
        else:
            parts.append(torch.rand(shape, generator=generator).add_(0.25).reshape(-1))
    return torch.cat(parts)
