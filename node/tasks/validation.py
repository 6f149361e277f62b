"""The validation set Q, on which ROSS and PDSL value what they hear: where it comes from, and the
utility made of it.

Q is public, or declared not to be (`validation.public`), the same at all nodes, and never travels.
Of a public data set it is held out of the training examples before they are divided; with own data
it is a file of which every host has a copy. Handshakes compare its digest.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from node import data as datasets
from node import device as devices
from node.algorithms import Capability, find
from node.config import DataSection, RunConfig
from node.data import Examples
from node.data.examples import kinds
from node.hooks import no_op
from node.maths.coalitions import Kind
from node.task import Task, flat, views
from peer.errors import ConfigurationError, DataError

DEFAULT, DEFAULT_SHARE = 500, 10
"""validation.size where an algorithm needs a set and the file says nothing: so many, at most one in
ten.
"""
SEED = 20241101
"""Of the draw of Q. Changing it changes which rows are held out everywhere."""
BATCH = 16
"""Models valued at once where that is faster (GPUs)."""

Rows: TypeAlias = NDArray[np.int64]


def held_out(run: RunConfig, labels: Rows) -> Rows:
    """Row numbers, sorted, of the public training set that belong to Q; none where the run holds
    none out.

    Raises:
        ConfigurationError: a class has too few examples.
    """
    size = run.validation.size
    if size is None or run.task.data == "own" or run.validation.path is not None:
        return np.empty(0, dtype=np.int64)
    classes, generator = np.unique(labels), np.random.default_rng(SEED)
    each = [size // len(classes) + (k < size % len(classes)) for k in range(len(classes))]
    chosen = []
    for label, count in zip(classes, each, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if count >= len(rows):
            raise ConfigurationError(
                f"validation.size = {size} takes {count} examples of class {label}, which has "
                f"{len(rows)}; lower it."
            )
        chosen.append(rows[:count])
    return np.sort(np.concatenate(chosen))


def sealed(run: RunConfig) -> RunConfig:
    """The run with the size and the digest of its validation set written out, where its algorithm
    needs one or the file asks for one.

    Raises:
        ConfigurationError, DataError: there is none, or it is not what is expected.
    """
    section = run.validation
    needs = Capability.VALIDATION in find(run.algorithm.name).NEEDS
    if section.path is not None:
        digest = file_digest(section.path)
        if section.digest not in ("", digest):
            raise ConfigurationError(
                f"{section.path} is not the file whose digest validation.digest is."
            )
        return _with(run, digest=digest)
    if run.task.data == "own":
        if needs and not section.digest:
            raise ConfigurationError(
                f"{run.algorithm.name} needs validation.path: a file that all nodes may know."
            )
        return run
    if section.size is None and not needs:
        return run
    train, _ = datasets.public_sets(run.task)
    run = _with(run, size=section.size or max(1, min(DEFAULT, len(train) // DEFAULT_SHARE)))
    return _with(run, digest=train.take(held_out(run, kinds(train.y))).digest())


def _with(run: RunConfig, **changes: object) -> RunConfig:
    return run.model_copy(update={"validation": run.validation.model_copy(update=changes)})


def load(run: RunConfig, data: DataSection | Rows, train: Examples) -> Examples | None:
    """Q as a node of this run sees it; None where the run has none.

    Args:
        train: what this node learns from if its data are its own, otherwise the whole public
            training set.

    Raises:
        ConfigurationError, DataError: it is missing, another one, of another shape, or overlaps
            public training data. That private data are in it nobody else may learn, least of all
            whoever wrote the file: it is used all the same, and the operator is told.
    """
    section = run.validation
    path = data.validation if isinstance(data, DataSection) and data.validation else section.path
    if path is not None:
        if file_digest(path) != section.digest != "":
            raise DataError(
                f"{path} is not the validation set of this run; copy the file that pack was given."
            )
        examples = datasets.own(path, run.task.per_row)
        own = run.task.data == "own"
        if shared := _shared(examples, train if own else train.take(_rows(data, len(train)))):
            overlap = f"{path} overlaps the training data ({shared} examples)"
            if not own:
                raise DataError(f"{overlap}; validate on others.")
            print(f"warning: {overlap}. Nobody else is told.", file=sys.stderr, flush=True)
    elif section.size is not None and run.task.data != "own":
        rows = held_out(run, kinds(train.y))
        chosen = isinstance(data, DataSection)  # where we divide, only `public` gets rows of Q
        if chosen and len(np.intersect1d(rows, _rows(data, len(train)))):
            raise DataError(
                "data.rows overlaps the validation set that validation.size holds out; divide "
                "again."
            )
        examples = train.take(rows)
        if section.digest and examples.digest() != section.digest:
            raise DataError(
                f"This copy of {run.task.data} is not the one the run was made with; install the "
                "same."
            )
    else:
        return None
    if examples.shape != train.shape:
        raise DataError(
            f"Validation examples have shape {examples.shape}, training examples {train.shape}."
        )
    return examples


def _rows(data: DataSection | Rows, n: int) -> Rows:
    """Which rows of a public set a node learns from."""
    if not isinstance(data, DataSection):
        return data
    return datasets.rows(data.rows, n) if data.rows else np.arange(n)


def _shared(a: Examples, b: Examples) -> int:
    """How many examples of `a` are in `b` as well."""
    if a.shape != b.shape:
        return 0
    seen = {row.numpy().tobytes() for row in b.floats().x}
    return sum(row.numpy().tobytes() in seen for row in a.floats().x)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        DataError: it can't be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"The validation set {path} can't be read ({error.strerror}); a file is expected."
        ) from None


class ValidationScorer:
    """A `node.maths.coalitions.UtilityOracle` on a task's Q."""

    def __init__(self, task: Task, yield_point: Callable[[], None] = no_op) -> None:
        """Of a task that has a validation set; `yield_point` is called between evaluations."""
        assert task.validation is not None
        self.layout, self.validation, self.yield_point = task.layout, task.validation, yield_point
        self._where = task.device
        self._batched: bool | None = None if self._where.type == "cuda" else False
        """Are many models valued at once? On the CPU never: it is 1.2 to 4 times slower there.
        None: to be tried.
        """

    now = staticmethod(time.monotonic)

    def around(self, x: Tensor, moves: Tensor, kind: Kind) -> Callable[[Tensor], list[float]]:
        """See `UtilityOracle`. One forward pass each; a first layer that is linear is multiplied
        with Q once per move, not once per model."""
        x, moves = (devices.onto(it.detach(), self._where) for it in (x, moves))
        with torch.inference_mode(), devices.enough_memory():
            first_done = self.validation.linear_first(x, moves)

        def values(shares: Tensor) -> list[float]:
            shares = devices.onto(shares, self._where)
            with torch.inference_mode(), devices.enough_memory():
                if first_done is not None:
                    return self._each(shares, lambda share: first_done(share, kind))
                if len(shares) >= BATCH and self._batched is None:
                    self._batched = self._faster(x, moves, shares[:BATCH], kind)
                way = self._together if self._batched else self._in_turn
                return way(x, moves, shares, kind)

        return values

    def gradient(self, x: Tensor) -> Tensor:
        """Of the mean loss on Q at x, flat float32 [d]."""
        parameters = views(self.layout, devices.onto(x.detach(), self._where))
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        loss = -self.validation.validate(leaves, "neg_loss")
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return devices.back(flat(self.layout, dict(zip(leaves, gradients, strict=True))))

    def _value(self, x: Tensor, kind: Kind) -> Tensor:
        return self.validation.validate(views(self.layout, x), kind)

    def _together(self, x: Tensor, moves: Tensor, shares: Tensor, kind: Kind) -> list[float]:
        values: list[float] = []
        for part in torch.split(shares, BATCH):
            models = torch.addmm(x, part, moves)
            values += vmap(lambda model: self._value(model, kind))(models).tolist()
            self.yield_point()
        return values

    def _in_turn(self, x: Tensor, moves: Tensor, shares: Tensor, kind: Kind) -> list[float]:
        return self._each(shares, lambda share: self._value(torch.addmv(x, moves.t(), share), kind))

    def _each(self, shares: Tensor, value: Callable[[Tensor], Tensor]) -> list[float]:
        values = []
        for share in shares:
            values.append(float(value(share)))
            self.yield_point()
        return values

    def _faster(self, x: Tensor, moves: Tensor, shares: Tensor, kind: Kind) -> bool:
        """Whether many models at once beat one after the other, here and now; both are warmed up
        first.
        """
        took = []
        for way in (self._together, self._in_turn):
            way(x, moves, shares, kind)
            began = time.perf_counter()
            way(x, moves, shares, kind)
            took.append(time.perf_counter() - began)
        return took[0] < took[1]
