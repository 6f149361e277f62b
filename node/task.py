"""What a node learns: the one interface between the daemon and a model with its data.

A task is functional: parameters are an argument, given as one flat float32 vector whose layout both
ends agree on, so that the gradient of a *neighbor's* model on *our* data (the cross-gradient) is
the same call as our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from node.figures import Metric
from peer.errors import TaskError
from peer.message import Layout


class Wrapper:
    """A task that holds another one as `_task`."""


class Task(Protocol):
    """Layout, examples, loss, evaluate. Everything that touches private data goes through
    `privacy.gate`.
    """

    layout: Layout
    """Names and shapes of the parameters in the flat vector (d = layout.size)."""

    num_examples: int
    """n_i, the number of private training examples. Private: never sent, logged or exported."""

    metrics: tuple[Metric, ...] = ()
    """What `evaluate` measures, the headline first. A task without it may measure what is common."""

    device: torch.device
    """Where it computes. Parameters and row numbers are given on the CPU; `batch` answers on the
    device.
    """

    # Where it has them: `stages`, names of the layout layer by layer (block-wise algorithms ask for
    # them); `micro_batch`,
    # how many examples a backward pass takes; `adapted` = True: the layout is that of adapters to a
    # frozen model;
    # `example()`: one made-up, public example, tensors without batch dimension, where 0, 1 and
    # normal numbers are none;
    # `indexes` = True (of peerpoise's own): `batch` does nothing but index; others are asked for
    # one row at a time;
    # `inputs`: what the model is fed, by name, in words that tell nothing of the examples; equal at
    # all nodes.

    def to(self, device: torch.device) -> None:
        """Moves the examples to the device. A task without `device` and `to` stays on the CPU."""
        ...

    def initial_parameters(self, seed: int) -> Tensor:
        """Initial parameters, flat [d], float32 or what the task keeps them in; the same for a seed
        on every node.
        """
        ...

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The examples of these row numbers (int64 [n], n may be 0), each tensor stacked along its
        first dimension.
        """
        ...

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        """Scalar loss of ONE example (tensors without batch dimension).

        A pure function: it changes nothing, and keeps nothing from call to call. Random numbers
        (dropout) come from torch's own generator, which is seeded for each record. Fast where it
        works under `torch.func.vmap`.
        """
        ...

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Scalar mean loss of a stacked batch; equals the mean of `loss` over it up to rounding."""
        ...

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = ...) -> dict[str, float]:
        """Public test metrics of the flat parameters x, by the names of `metrics`; {} where there
        is no test set.
        """
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
