"""A task on synthetic examples and parameters.

It may be tried before anything private is touched, and may decide how private examples are treated
without revealing anything of them.

Values have to be admissible: 0 is no length, an empty mask has no mean. So integers are drawn from
0 and 1, or all 1, or 0; floats are normal, or uniform in (0.25, 1): the first combination with
which the loss and its gradient are finite. A task for which none of them will do declares one
example (`Objective.example`); else the node's own examples are used for checks that can only
refuse, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from node import device
from node.maths.per_example import looped
from node.maths.purity import PROCESS_SEEDS, Impure, State
from node.task import Factored, Objective, Wrapper, views
from peer.errors import TaskError, first_line
from peer.message import Layout

TRIED = 4
"""Made-up examples that have to be admissible; integers repeat after so many rows."""
MOST = 8
"""Combinations of ones and zeros that are tried."""
EITHER = 2
"""For `Values.integers`: 0 or 1, drawn."""


@dataclass(frozen=True, slots=True)
class Values:
    """What made-up examples consist of."""

    source: Literal["made up", "declared", "own"] = "made up"
    integers: tuple[int, ...] = ()
    """Of each column of integers: 0, 1 or EITHER; of further columns 1."""
    floats: Literal["normal", "uniform", "declared"] = "normal"
    scale: float = 1.0
    """Of the floats."""
    seed: int = 0
    telling: bool = True
    """Gradients are finite, and not all zero."""


class SyntheticTask(Wrapper):
    """The task's loss on `examples` rows of its own shape and types, and of these values."""

    indexes = True
    _task: Objective

    def __init__(self, task: Objective, examples: int, values: Values = Values()) -> None:
        self._task = task
        self.layout = task.layout
        self.num_examples = examples
        self.device, self.bundled = task.device, task.bundled
        columns = _columns(task, examples, values)
        scaled = [
            it * values.scale if values.scale != 1 and it.is_floating_point() else it
            for it in columns
        ]
        self._rows = [it.to(self.device) for it in scaled]

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(column[rows.to(column.device)] for column in self._rows)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self._task.loss(parameters, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._task.mean_loss(parameters, batch)

    def factors(self) -> Factored | None:
        return self._task.factors()

    def initial_parameters(self, seed: int) -> Tensor:
        return random_parameters(self.layout, seed)


def admissible(task: Objective) -> Values:
    """The first values with which loss and gradient are finite, and not all zero, at made-up
    parameters; if there are none, the first that can be computed at all (not `telling`); if nothing
    made-up can, the node's own.

    Raises:
        Impure: a loss changed what the task holds.
        TaskError: the example that the task declares can't be learned from.
        whatever the task's loss raises with all of them, the node's own examples included.
    """
    fallback, failure = None, None
    with State.of(task).unchanged():
        for values in _candidates(task):
            try:
                gradients = _gradients(task, values)
            except Impure:
                raise
            except Exception as error:
                failure = error
                continue
            finite = all(bool(g.isfinite().all()) for g in gradients)
            if finite and any(bool(g.any()) for g in gradients):
                return values
            fallback = fallback or replace(values, telling=False)
        if fallback is not None:
            return fallback
        if declared(task) is not None:
            reason = first_line(failure).removeprefix("The task's example() ")
            raise TaskError(f"The task's example() can't be learned from: {reason}.") from failure
        own_values = Values("own", telling=False)
        _gradients(task, own_values)
        return own_values


def _candidates(task: Objective) -> Iterator[Values]:
    if declared(task) is not None:
        for floats in ("normal", "uniform", "declared"):
            yield Values("declared", (), floats)
        return
    count = sum(not it.dtype.is_floating_point and not it.is_complex() for it in _first(task))
    for kind in ("normal", "uniform"):
        tried = [(EITHER,) * count, *islice(product((1, 0), repeat=count), MOST), (0,) * count]
        for integers in dict.fromkeys(tried):
            yield Values("made up", integers, kind)


def _gradients(task: Objective, values: Values) -> list[Tensor]:
    """Of a few examples, each parameter's [n, *shape]."""
    n = min(TRIED, task.num_examples) if values.source == "own" else TRIED
    synthetic, rows = SyntheticTask(task, n, values), torch.arange(n)
    parameters = views(task.layout, device.onto(synthetic.initial_parameters(0), synthetic.device))
    return list(looped(synthetic, PROCESS_SEEDS)(parameters, synthetic.batch(rows), rows).values())


def declared(task: Objective) -> tuple[Tensor, ...] | None:
    """The example that the task declares, without a batch dimension; None: it declares none.

    Raises:
        TaskError: it is no tuple of tensors.
    """
    columns = task.example()
    if columns is None:
        return None
    if not isinstance(columns, tuple | list) or not all(
        isinstance(column, Tensor) for column in columns
    ):
        raise TaskError(
            f"The task's example() gives something of type {type(columns).__name__}; a tuple of "
            "tensors is expected, as of batch(), without the first dimension."
        )
    return tuple(columns)


def _first(task: Objective) -> tuple[Tensor, ...]:
    """Of one own example only shapes and types are used."""
    return task.batch(torch.tensor([0]))


def _columns(task: Objective, n: int, values: Values) -> list[Tensor]:
    if values.source == "own":
        return list(task.batch(torch.arange(n) % task.num_examples))
    generator = torch.Generator().manual_seed(values.seed)
    example = declared(task) if values.source == "declared" else None
    if example is not None:
        _refuse_other(example, _first(task))
        return [_near(column, n, generator, values.floats) for column in example]
    integers = iter(values.integers)
    return [_like(column, n, generator, values.floats, integers) for column in _first(task)]


def _refuse_other(example: tuple[Tensor, ...], batch: tuple[Tensor, ...]) -> None:
    """Raises TaskError: the declared example has not the shapes and types of the task's own."""
    actual = [(column.dtype, tuple(column.shape)) for column in example]
    expected = [(column.dtype, tuple(column.shape[1:])) for column in batch]
    if actual != expected:
        raise TaskError(
            f"The task's example() gives {_in_words(actual)}, where an example of batch() is "
            f"{_in_words(expected)}."
        )


def _in_words(columns: list[tuple[torch.dtype, tuple[int, ...]]]) -> str:
    return "; ".join(f"{kind} {list(shape)}" for kind, shape in columns)


def _near(column: Tensor, n: int, generator: torch.Generator, floats: str) -> Tensor:
    """n times the declared column; its floats are drawn, or moved by less than a hundredth where
    only they will do.
    """
    if not column.dtype.is_floating_point:
        return column.detach().cpu().expand(n, *column.shape).clone()
    if floats != "declared":
        return _floats((n, *column.shape), generator, floats).to(column.dtype)
    scale = torch.rand((n, *column.shape), generator=generator).mul_(-1 / 128).add_(1)
    return (column.detach().cpu() * scale).to(column.dtype)


def _like(
    column: Tensor, n: int, generator: torch.Generator, floats: str, integers: Iterator[int]
) -> Tensor:
    shape = (n, *column.shape[1:])
    if column.dtype.is_floating_point or column.is_complex():
        return _floats(shape, generator, floats).to(column.dtype)
    value = next(integers, 1)
    if value == EITHER:
        is_image = column.dtype == torch.uint8 and column.dim() > 2
        highest = 256 if is_image else 2
        few = torch.randint(0, highest, (TRIED, *shape[1:]), generator=generator)
        return few[torch.arange(n) % TRIED].to(column.dtype)
    return torch.full(shape, value, dtype=column.dtype)


def _floats(shape: tuple[int, ...], generator: torch.Generator, kind: str) -> Tensor:
    if kind == "uniform":
        return torch.rand(shape, generator=generator).mul_(0.75).add_(0.25)
    return torch.randn(shape, generator=generator)


def random_parameters(layout: Layout, seed: int) -> Tensor:
    """Parameters, flat float32 [d], at which every unit is alive and every bit matters: matrices of
    random signs and sizes that keep a layer's scale, vectors (biases, norms) positive."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _, shape in layout.fields:
        if len(shape) > 1:
            width = sqrt(max(1, Layout((("", shape),)).size // shape[0]))
            parts.append(torch.randn(shape, generator=generator).mul_(1.5 / width).reshape(-1))
        else:
            parts.append(torch.rand(shape, generator=generator).add_(0.25).reshape(-1))
    return torch.cat(parts)
