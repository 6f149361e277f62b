"""Canaries, and what the messages of a run say of each of them.

A canary is a record whose gradient has norm C along an axis of its own. Its score is what messages,
added up with weights, have along that axis. The weights are the best linear ones: those with which
messages come nearest to the sum of all the node's releases (the projection on the row space of the
knowledge matrix, `node.audit.knowledge`), as all other releases are noise to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from node.audit.knowledge import Knowledge
from node.audit.overheard import Place
from node.hooks import no_op
from node.maths.blocks import Block
from node.task import Factored, Factors, Task
from peer.message import Layout, Peer

LOUD = 10.0
"""A canary's gradient before it is clipped, in units of C."""
RIDGE = 1e-9
"""Of the weights: messages of length 1 along which less than its root is said are left alone."""


class Canaries(Task):
    """A task whose every record has a gradient along one axis, whatever the model is."""

    indexes = bundled = True

    def __init__(self, side: int, clip: float, coins: torch.Generator) -> None:
        """side² canaries, each there with probability ½."""
        self.layout = Layout((("canaries", (side, side)),))
        self.side, self.loudness = side, LOUD * clip
        self.included = torch.rand(side * side, generator=coins) < 0.5
        self.signs = torch.randint(0, 2, (side * side,), generator=coins).mul(2.0).sub(1.0)
        self.rows = self.included.nonzero().flatten()
        self.num_examples = len(self.rows)

    def initial_parameters(self, seed: int) -> Tensor:
        return torch.zeros(self.layout.size)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """δ and a [n, side] each: a gradient is δaᵀ, one coordinate of it."""
        axes = self.rows[rows]
        delta, a = torch.zeros(2, len(axes), self.side)
        each = torch.arange(len(axes))
        delta[each, axes // self.side] = self.loudness * self.signs[axes]
        a[each, axes % self.side] = 1.0
        return delta, a

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        delta, a = example
        return (parameters["canaries"] @ a) @ delta

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        delta, a = batch
        return ((a @ parameters["canaries"].T) * delta).sum(1).mean()

    def factors(self) -> Factored:
        def factored(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
            return {"canaries": (batch[0], batch[1])}

        return factored

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        return {}


class Noise:
    """The gate of a node whose data are known: what is left of a release is its noise."""

    def __init__(self, std: float, d: int, seed: int) -> None:
        """`std` of a release; 0: of a curious node, which adds none."""
        self._std, self._d = std, d
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        if not self._std:
            return torch.zeros(self._d)
        return torch.randn(self._d, generator=self._generator).mul_(self._std)

    def own(self, x: Tensor, t: int) -> Tensor:
        return self(x, t, "")

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        return self(x, t, "")

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        raise AssertionError("algorithms that train blocks need layers, and are refused")


def weights(heard: Knowledge, target: Peer) -> dict[Place, float]:
    """By what messages are added up to come nearest to the sum of the target's releases, on a scale
    on which a record that is in all their batches adds 1."""
    if not heard.places:
        return {}
    wanted = torch.tensor([float(it[0] == target) for it in heard.releases], dtype=torch.float64)
    lengths = heard.matrix.norm(dim=1).clamp(min=1e-300)
    rows = heard.matrix / lengths[:, None]
    if len(rows) < rows.shape[1]:
        by = torch.linalg.solve(_ridge(rows @ rows.T), rows @ wanted)
    else:
        by = rows @ torch.linalg.solve(_ridge(rows.T @ rows), wanted)
    reached = float(by @ rows @ wanted)
    if reached < RIDGE:
        return {}
    return dict(zip(heard.places, (by / lengths / reached).tolist(), strict=True))


def _ridge(gram: Tensor) -> Tensor:
    gram.diagonal().add_(RIDGE)
    return gram


class Scores:
    """Adds up, with weights, what is heard."""

    def __init__(self, by: Mapping[Place, float], d: int) -> None:
        self._by = dict(by)
        self.total = torch.zeros(d, dtype=torch.float64)

    def __call__(self, place: Place, message: Tensor) -> None:
        """What two curious nodes hear counts once."""
        if weight := self._by.pop(place, 0.0):
            self.total.add_(message, alpha=weight)
