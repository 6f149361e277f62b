"""Trap weights: parameters at which a first layer's gradient has single records in its rows.

Boenisch et al., "When the Curious Abandon Honesty", arXiv 2112.02918; with biases from quantiles,
as in Fowl et al., "Robbing the Fed", arXiv 2110.13057. See node/audit/inversion.py.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from node.task import Task, views
from peer.errors import ConfigurationError
from peer.message import Layout

LOUD = 1e3
"""Weights of a trap's second layer: nearly all of the gradient's norm is in the first."""
QUIET = 1e-6
"""Length of the rows of its first layer: logits stay near 0, and probabilities near 1/K."""


def trap(task: Task, known: Tensor, batch: int, seed: int) -> Tensor:
    """Parameters [d] at which the first layer's units are awake for about one of `batch` records.

    Raises:
        ConfigurationError: the model is not one or two linear layers.
    """
    _check_linear(task)
    x = torch.zeros(task.layout.size)
    parameters = list(views(task.layout, x).values())
    weight, bias, *rest = parameters
    if not rest:
        bias[0] = 3.0  # the row of class 0 has much of any record
        return x
    second = rest[0]
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(weight.shape, generator=draw)
    directions *= QUIET / directions.norm(dim=1, keepdim=True)
    measured = known.flatten(1) @ directions.t()
    if batch == 1:
        weight[0], bias[0] = directions[0], 2 * QUIET * known.flatten(1).norm(dim=1).max()
    else:
        weight.copy_(directions)
        bias.copy_(-measured.quantile(1 - 1 / batch, dim=0))
    second[0] = LOUD
    return x


def _check_linear(task: Task) -> None:
    layers = task.layout.fields
    shape = task.input_shape
    inputs = prod(shape) if shape else 0
    if task.factors() is None or len(layers) not in (2, 4) or layers[0][1][1:] != (inputs,):
        raise ConfigurationError(
            "Trap weights are for models of one or two linear layers; set task.model = softmax or "
            "mlp."
        )


def rows_of(layout: Layout, answer: Tensor, batch: int) -> Tensor:
    """What the units that may be awake say their record is, [units, inputs]: their rows of the
    gradient [d] over their biases. For a `batch` of one that is the first unit.
    """
    weight, bias, *_ = views(layout, answer).values()
    awake = bias.abs() > 1e-6 * bias.abs().max()
    awake[0] |= not bool(awake.any())
    rows = weight[awake] / bias[awake].unsqueeze(1)
    return rows[:1] if batch == 1 else rows
