"""Blocks of a model's layers: what is trained at a time, in which order, and the task as the active block sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from node import device
from node.task import Task, views
from peer.message import Layout

Order: TypeAlias = Literal["ascending", "descending", "random"]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive parameters of a model."""

    layout: Layout
    place: slice
    """Where they lie in the model's flat vector [d]."""

    @property
    def size(self) -> int:
        return self.layout.size


def divided(layout: Layout, stages: Sequence[Sequence[str]], each: int) -> tuple[Block, ...]:
    """The model in blocks of `each` consecutive stages (the last may be shorter), in layout order.

    Args:
        stages: names of the layout's fields, layer by layer, together all of them in order.
    """
    assert [name for stage in stages for name in stage] == [name for name, _ in layout.fields], "stages ≠ layout"
    shapes, found, start = dict(layout.fields), [], 0
    for k in range(0, len(stages), each):
        part = Layout(tuple((name, shapes[name]) for stage in stages[k : k + each] for name in stage), layout.dtype)
        found.append(Block(part, slice(start, start + part.size)))
        start += part.size
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Position:
    """Where round t is: inner step `step` of the `visit`-th block of cycle `cycle`."""

    cycle: int
    visit: int
    step: int


def position(t: int, blocks: int, steps: int) -> Position:
    """`steps` inner steps in a block, `blocks` blocks in a cycle."""
    visits, step = divmod(t, steps)
    return Position(*divmod(visits, blocks), step)


def visited(order: Order, at: Position, blocks: int, seed: int) -> int:
    """Number of the block that is visited; random: every cycle's own order, the same at all nodes for the same seed."""
    if order == "random":
        return random.Random(f"{seed} {at.cycle}").sample(range(blocks), blocks)[at.visit]
    return at.visit if order == "ascending" else blocks - 1 - at.visit


class Within(Task):
    """A task as one block sees it: the other parameters stand still, at what x was when this was made.

    Backward stops at the block: nothing before it asks for a gradient.
    """

    def __init__(self, task: Task, x: Tensor, block: Block) -> None:
        """x: the whole model [d], of any float type; on the task's device it is kept, a view of it on the CPU."""
        self._task, self.layout, self.examples = task, block.layout, task.examples
        self.device = getattr(task, "device", device.CPU)
        mine = {name for name, _ in block.layout.fields}
        frozen = views(task.layout, device.onto(x.detach(), self.device))
        self._frozen = {name: value for name, value in frozen.items() if name not in mine}

    @property
    def at_once(self) -> int | None:
        return getattr(self._task, "at_once", None)

    def to(self, device: torch.device) -> None:
        raise NotImplementedError("the whole task moves")

    def start(self, seed: int) -> Tensor:
        raise NotImplementedError("the whole task starts")

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._task.batch(rows)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss({**self._frozen, **parameters}, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss({**self._frozen, **parameters}, batch)

    def evaluate(self, x: Tensor, breathe: Callable[[], None] = lambda: None) -> dict[str, float]:
        raise NotImplementedError("the whole task is evaluated")
