"""Gradients of single examples, one after another or by `torch.func.vmap`.

Deviations from plain autograd: randomness comes from a seed per row in the loop and is refused by
vmap; sparse gradients (nn.Embedding(sparse=True)) are made dense.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import grad, vmap

from node.maths.purity import Impure, Seeds, seeded_rows
from node.task import Objective
from peer.errors import PeerpoiseError, TaskError, first_line

Parameters = Mapping[str, Tensor]
Gradients = Callable[[Parameters, tuple[Tensor, ...], Tensor], dict[str, Tensor]]
"""(parameters, a stacked batch, its row numbers) -> the gradient of every example, {name: [n,
*shape]}.
"""


def vmapped(task: Objective) -> Gradients:
    """All examples at once. Raises whatever vmap raises, also where the loss is random."""

    def loss(parameters: Parameters, *example: Tensor) -> Tensor:
        return scalar(task.loss(parameters, example))

    def gradients(
        parameters: Parameters, batch: tuple[Tensor, ...], rows: Tensor
    ) -> dict[str, Tensor]:
        mapped = vmap(grad(loss), in_dims=(None, *[0] * len(batch)), randomness="error")
        with warnings.catch_warnings(), seeded_rows(task.device):
            warnings.filterwarnings("ignore", "There is a performance drop")
            result: dict[str, Tensor] = mapped(dict(parameters), *batch)
        return result

    return gradients


DRAWING = threading.Lock()
"""torch's generator is one for all threads; where nodes share a process, one draws at a time."""


def fetch(task: Objective, rows: Tensor, seeds: Seeds) -> tuple[Tensor, ...]:
    """The examples of `rows` (int64 [n], n > 0), stacked. Nothing of one may depend on which others
    are asked for, so a task that may do more than index is asked row by row, with torch's generator
    seeded for each.

    Raises:
        TaskError: rows have other shapes than each other, or more than one entry.
    """
    if task.indexes:
        return task.batch(rows)
    single: dict[int, tuple[Tensor, ...]] = {}
    with DRAWING, seeded_rows(task.device) as seed:
        for row in dict.fromkeys(rows.tolist()):
            seed(seeds(row))
            single[row] = tuple(column.detach() for column in task.batch(torch.tensor([row])))
    if any(column.shape[:1] != (1,) for example in single.values() for column in example):
        raise TaskError(
            "The task's batch(rows) gives tensors without one entry for each row; "
            "index each by rows."
        )
    try:
        return tuple(
            torch.cat(column)
            for column in zip(*(single[row] for row in rows.tolist()), strict=True)
        )
    except (RuntimeError, ValueError):
        raise TaskError(
            "The task's batch(rows) gives other shapes for other rows; pad them to one length."
        ) from None


def looped(task: Objective, seeds: Seeds) -> Gradients:
    """One example after another, each with torch's generator seeded for its row and with parameters
    of its own.

    Raises:
        TaskError: the loss is no scalar, or can't be differentiated.
        Impure: it changes the parameters.
    """

    def gradients(
        parameters: Parameters, batch: tuple[Tensor, ...], rows: Tensor
    ) -> dict[str, Tensor]:
        singles = []
        with seeded_rows(task.device) as seed, torch.enable_grad():
            for row, *example in zip(rows.tolist(), *batch, strict=True):
                leaves = {
                    name: value.clone().requires_grad_() for name, value in parameters.items()
                }
                seed(seeds(row))
                # a copy of its own: kernels may round by how the memory is aligned
                singles.append(_gradient(task, leaves, tuple(it.clone() for it in example)))
        return {name: torch.stack([g[name] for g in singles]) for name in parameters}

    return gradients


def _gradient(
    task: Objective, leaves: Parameters, example: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    loss = scalar(task.loss(leaves, example))
    _refuse_changed(leaves)
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    with _differentiable():
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    dense = [it if it.layout == torch.strided else it.to_dense() for it in gradients]
    return dict(zip(leaves, dense, strict=True))


def backward(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    """Adds the gradient of a scalar to the leaves' `grad`. Raises TaskError: it can't be
    computed.
    """
    with _differentiable():
        torch.autograd.backward(loss, inputs=leaves)


@contextmanager
def _differentiable() -> Iterator[None]:
    try:
        yield
    except PeerpoiseError:
        raise
    except Exception as error:  # also out of the task's own autograd functions
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise
        reason = first_line(error).partition(" Hint:")[0]
        raise TaskError(f"The gradient of the task's loss can't be computed: {reason}.") from error


def scalar(loss: object, name: str = "loss") -> Tensor:
    """The loss as a tensor without dimensions.

    Raises:
        TaskError: it is something else.
    """
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"The task's {name} gave a {type(loss).__name__}; a scalar tensor is expected "
            "(no .item())."
        )
    if loss.numel() != 1:
        raise TaskError(
            f"The task's {name} gave a tensor of shape {list(loss.shape)}; a scalar is expected."
        )
    if not loss.is_floating_point():
        raise TaskError(
            f"The task's {name} gave a tensor of type {loss.dtype}; a real scalar is expected."
        )
    return loss.reshape(())


def _refuse_changed(leaves: Parameters) -> None:
    for name, leaf in leaves.items():
        if leaf._version:
            raise Impure(
                f"The loss changes the parameter {name!r} itself (as an embedding with max_norm "
                "does), so one record would reach the gradients of others; leave that out."
            )
