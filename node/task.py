"""What a node learns: the one interface between the daemon and a model with its data.

A task is functional: parameters are an argument, given as one flat float32 vector whose layout both
ends agree on, so that the gradient of a *neighbor's* model on *our* data (the cross-gradient) is
the same call as our own.

`Objective` is what gradients are taken of, `Task` what a run needs besides. What a task has no use
for it inherits: a default says that it does not have it. `OwnTask` is what somebody else's task has
to offer; `node.tasks.guard` makes a `Task` of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from node.device import CPU
from node.figures import Metric
from node.hooks import no_op
from peer.errors import TaskError
from peer.message import Layout

Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Parameter -> (δ [n, out], a [n, in]): example b's gradient is δ_b a_bᵀ in the parameter's shape.
A bias has a = 1.
"""
Factored: TypeAlias = Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Factors]
"""(parameters, a stacked batch) -> its factors."""
Value: TypeAlias = Literal["accuracy", "neg_loss"]
"""What a model is worth: its accuracy in [0, 1], or its negative mean loss."""


class Stopped(BaseException):
    """Ends the work in the compute thread: the daemon is stopping. Not an Exception, so no
    algorithm swallows it.
    """


class Objective(ABC):
    """A loss on examples. Everything that touches private ones goes through `privacy.gate`."""

    layout: Layout
    """Names and shapes of the parameters in the flat vector (d = layout.size)."""
    num_examples: int
    """n_i, the number of private training examples. Private: never sent, logged or exported."""
    device: torch.device = CPU
    """Where it computes. Parameters and row numbers are given on the CPU; `batch` answers on the
    device.
    """
    micro_batch: int | None = None
    """How many examples a backward pass takes; None: any number."""
    indexes: bool = False
    """Does `batch` nothing but index? Others are asked for one row at a time."""
    bundled: bool = False
    """Is it peerpoise's own? Others are asked now and then whether they are still pure."""

    @abstractmethod
    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The examples of these row numbers (int64 [n], n may be 0), each tensor stacked along its
        first dimension.
        """

    @abstractmethod
    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        """Scalar loss of ONE example (tensors without batch dimension).

        A pure function: it changes nothing, and keeps nothing from call to call. Random numbers
        (dropout) come from torch's own generator, which is seeded for each record. Fast where it
        works under `torch.func.vmap`.
        """

    @abstractmethod
    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Scalar mean loss of a stacked batch; equals the mean of `loss` over it up to rounding."""

    def factors(self) -> Factored | None:
        """What gives the gradients as outer products (`node.maths.ghost`); None: they are none."""
        return None

    def example(self) -> tuple[Tensor, ...] | None:
        """One made-up, public example, tensors without batch dimension, where 0, 1 and normal
        numbers are none. None: they are.
        """
        return None


class Validation(Protocol):
    """The validation set Q: what models are worth, in public."""

    def validate(self, parameters: Mapping[str, Tensor], kind: Value) -> Tensor:
        """Scalar value of these parameters on Q; as "neg_loss" it is differentiable."""
        ...

    def linear_first(self, x: Tensor, moves: Tensor) -> Callable[[Tensor, Value], Tensor] | None:
        """(shares [k], kind) -> value of x + shares·moves on Q, with the product of the first layer
        made once for x [d] and for every move [k, d]; None: that layer is not linear.
        """
        ...


class Task(Objective):
    """An objective that a run learns: how it starts, and how the result is measured."""

    metrics: tuple[Metric, ...] = ()
    """What `evaluate` measures, the headline first."""
    inputs: Mapping[str, str] = MappingProxyType({})
    """What the model is fed, by name, in words that tell nothing of the examples; equal at all
    nodes.
    """
    dtype: torch.dtype = torch.float32
    """What it keeps its parameters in."""
    layer_groups: Sequence[Sequence[str]] = ()
    """The layout's names, layer by layer, for block-wise algorithms; empty: there are no layers."""
    input_shape: tuple[int, int, int] | None = None
    """Channels, height and width of an input; None: it is no image and no row of a table."""
    adapted: bool = False
    """Is the layout that of adapters to a frozen model?"""

    @abstractmethod
    def initial_parameters(self, seed: int) -> Tensor:
        """Initial parameters, flat [d], float32 or `dtype`; the same for a seed on every node."""

    @abstractmethod
    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        """Public test metrics of the flat parameters x [d], by the names of `metrics`; {} where
        there is no test set. `yield_point` is called now and then.
        """

    def to(self, device: torch.device) -> None:
        """Moves the examples to the device. A task that can't stays where it is."""
        return None

    @property
    def validation(self) -> Validation | None:
        """None: there is no validation set."""
        return None

    @property
    def units(self) -> NDArray[np.int64] | None:
        """Whose each example is, [num_examples]: those of one privacy unit (`task.unit`) have one
        number. None: nobody has said. Private, as the examples are.
        """
        return None


class Wrapper(Objective):
    """An objective that is another one, but for something."""

    _task: object


class Rebatched(Wrapper, Task):
    """A task in all but its batches."""

    _task: Task

    def __init__(self, task: Task) -> None:
        self._task = task
        self.layout, self.num_examples, self.device = task.layout, task.num_examples, task.device
        self.micro_batch, self.indexes, self.bundled = task.micro_batch, task.indexes, task.bundled
        self.inputs, self.dtype, self.metrics = task.inputs, task.dtype, task.metrics
        self.layer_groups, self.adapted = task.layer_groups, task.adapted
        self.input_shape = task.input_shape

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

    @property
    def units(self) -> NDArray[np.int64] | None:
        return self._task.units


class OwnTask(Protocol):
    """What a task of your own has to have (docs/own-task.md); there is nothing to inherit."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters in the flat vector (d = layout.size)."""
        ...

    @property
    def num_examples(self) -> int:
        """The number of private training examples."""
        ...

    def initial_parameters(self, seed: int) -> Tensor:
        """See `Task`."""
        ...

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """See `Objective`."""
        ...

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        """See `Objective`."""
        ...

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """See `Objective`."""
        ...

    def evaluate(self, x: Tensor) -> Mapping[str, float]:
        """See `Task`; `yield_point` may be taken as a second argument."""
        ...


def views(layout: Layout, x: Tensor) -> dict[str, Tensor]:
    """Named views into the flat vector x [d]; no copy."""
    return {name: x[place].view(shape) for name, shape, place in layout.slices()}


def layout_of(module: nn.Module) -> Layout:
    """Names and shapes of the module's parameters that ask for gradients: what is frozen stays out,
    and frozen.
    """
    return Layout(
        tuple((name, tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad)
    )


def flat(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """The named tensors as one new flat float32 vector in layout order.

    Raises:
        TaskError: one is complex.
    """
    if complex_ones := [name for name, _ in layout.fields if tensors[name].is_complex()]:
        raise TaskError(f"The parameter {complex_ones[0]!r} is complex; hold it as two real ones.")
    return torch.cat(
        [tensors[name].detach().reshape(-1).to(torch.float32) for name, _ in layout.fields]
    )
