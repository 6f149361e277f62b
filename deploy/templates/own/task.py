"""A torch module of your own, on data of your own. More: peerpoise show own-task."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from peerpoise import module_task


def build() -> nn.Module:
    """The model. It may not mix the examples of a batch: GroupNorm or LayerNorm, no BatchNorm."""
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


def points(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of it, read your data: inputs and targets, or any torch Dataset of such pairs."""
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, (x.norm(dim=1) < 0.75).long()


def make_task(run, data):
    """`data`: this node's row numbers of the public set; with data = "own" the [data] section of
    its node.toml, of which data.path is the file to read.
    """
    x, y = points(2000, seed=0)
    rows = torch.from_numpy(data)
    return module_task(
        build, (x[rows], y[rows]), functional.cross_entropy, test=points(500, seed=1)
    )
