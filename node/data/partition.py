"""How a public data set is divided among nodes for experiments: disjoint parts, none empty. With
`task.unit` all rows of a person are in one part.

Row numbers are int64, sorted. The same arguments give the same parts with the same numpy; `up`
writes them to files. What parts of equal size leave over (fewer rows than nodes) belongs to nobody.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node import data
from node.config import ExperimentSection
from node.data.examples import kinds as kinds_of
from node.data.units import whole
from peer import files
from peer.errors import ConfigurationError

Rows = NDArray[np.int64]


def divide(
    experiment: ExperimentSection, examples: data.Rows, held_out: Rows | None = None
) -> list[Rows]:
    """The parts of all nodes as `[experiment]` asks, of the rows that are not held out.

    Raises:
        ConfigurationError: more nodes than rows, shards or values; no such column.
    """
    if held_out is not None and len(held_out):
        kept = np.setdiff1d(np.arange(len(examples)), held_out)
        return [kept[part] for part in divide(experiment, examples.take(kept))]
    if examples.units is not None:
        return _by_unit(experiment, examples, whole(examples.units))
    labels, nodes, seed = kinds(experiment, examples), experiment.nodes, experiment.seed
    match experiment.partition:
        case "iid":
            return iid(len(labels), nodes, seed)
        case "dirichlet":
            return dirichlet(labels, nodes, experiment.alpha, seed)
        case "dirichlet-unequal":
            return dirichlet_unequal(labels, nodes, experiment.alpha, seed)
        case "shards":
            return shards(labels, nodes, experiment.shards, seed)
        case "column":
            return by_column(labels, nodes, seed)


def _by_unit(
    experiment: ExperimentSection, examples: data.Rows, members: Sequence[Rows]
) -> list[Rows]:
    """As `divide`, but nobody's rows are at two nodes: persons are divided, each by their first
    row. `members`: the rows of each.
    """
    firsts = examples.take(np.array([rows[0] for rows in members]))
    parts = divide(experiment, replace(firsts, units=None))
    return [np.sort(np.concatenate([members[k] for k in part])) for part in parts]


def kinds(experiment: ExperimentSection, examples: data.Rows) -> Rows:
    """By what the rows are divided, int64 [n]: the values of `experiment.column`, numbered in
    order, or the labels.

    Raises:
        ConfigurationError: no such column.
    """
    if not experiment.column and experiment.partition != "column":
        return kinds_of(examples.y)
    if experiment.column not in examples.columns:
        known = ", ".join(sorted(examples.columns)) or "none"
        raise ConfigurationError(
            f"experiment.column = {experiment.column!r} is no column of the data; it has {known}."
        )
    _, kinds = np.unique(examples.columns[experiment.column], return_inverse=True)
    return np.asarray(kinds, np.int64)


def iid(n: int, nodes: int, seed: int) -> list[Rows]:
    """n rows, shuffled and cut into `nodes` parts of n // nodes."""
    size = _size(n, nodes)
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(order[k * size : (k + 1) * size]) for k in range(nodes)]


def dirichlet(labels: Rows, nodes: int, alpha: float, seed: int) -> list[Rows]:
    """The papers' split: every node draws class priors from Dirichlet(alpha), all nodes get the
    same number of rows.

    Rows are handed out one by one to nodes in random order; each takes a row of a class drawn from
    its priors among the classes that are left, so late rows stray from the priors when a class runs
    out. labels: int64 [n].
    """
    size, generator = _size(len(labels), nodes), np.random.default_rng(seed)
    stock = [
        list(generator.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)
    ]
    priors = generator.dirichlet(np.full(len(stock), alpha), nodes)
    left = np.array([len(rows) for rows in stock], dtype=np.float64)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    order = generator.permutation(np.repeat(np.arange(nodes), size))
    for node, draw in zip(order, generator.random(len(order)), strict=True):
        label = _choose(priors[node], left, draw)
        parts[node].append(stock[label].pop())
        left[label] -= 1
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in parts]


def dirichlet_unequal(labels: Rows, nodes: int, alpha: float, seed: int) -> list[Rows]:
    """Each class is shared out among the nodes by a draw from Dirichlet(alpha) over nodes, so sizes
    differ too; every row belongs to somebody. A node that got nothing is given a row of the largest
    part (of many where alpha is tiny).
    """
    _size(len(labels), nodes)
    generator = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.round(
            np.cumsum(generator.dirichlet(np.full(nodes, alpha)))[:-1] * len(rows)
        ).astype(np.int64)
        for part, share in zip(parts, np.split(rows, ends), strict=True):
            part += share.tolist()
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def shards(labels: Rows, nodes: int, each: int, seed: int) -> list[Rows]:
    """Rows sorted by label are cut into nodes·each pieces of one size; every node gets `each` of
    them at random (McMahan et al., arXiv 1602.05629, section 3)."""
    size, generator = _size(len(labels), nodes * each), np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")][: nodes * each * size]
    pieces = order.reshape(nodes * each, size)
    dealt = generator.permutation(nodes * each).reshape(nodes, each)
    return [np.sort(pieces[mine].reshape(-1)) for mine in dealt]


def by_column(column: NDArray[np.generic], nodes: int, seed: int) -> list[Rows]:
    """All rows with one value of the column go to one node; values are dealt in random order, the
    next one to the node with the fewest rows.

    Raises:
        ConfigurationError: more nodes than values.
    """
    values, number = np.unique(column, return_inverse=True)
    if nodes > len(values):
        raise ConfigurationError(
            f"experiment.nodes = {nodes} is more than the {len(values)} values of the column."
        )
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for value in np.random.default_rng(seed).permutation(len(values)):
        min(parts, key=len).extend(np.flatnonzero(number == value).tolist())
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def _choose(prior: NDArray[np.float64], left: NDArray[np.float64], draw: float) -> int:
    """A class with rows left, drawn from the prior; from what is left where the prior excludes all
    of it.
    """
    weights = np.where(left > 0, prior, 0.0)
    if not weights.sum() > 0:
        weights = left
    total = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return min(int(np.searchsorted(total, draw * total[-1], side="right")), last)


def _size(n: int, nodes: int) -> int:
    if nodes > n:
        raise ConfigurationError(
            f"{nodes} parts (experiment.nodes) are more than the {n} examples there are to share."
        )
    return n // nodes


def union(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts: what `centralized` learns from."""
    return np.sort(np.concatenate(parts))


def histogram(labels: Rows, parts: Sequence[Rows], classes: int) -> NDArray[np.int64]:
    """Examples per node and class, int64 [nodes, classes]. Of public data sets only: on private
    ones it is private.
    """
    return np.array(
        [np.bincount(labels[rows], minlength=classes) for rows in parts], dtype=np.int64
    )


def save(path: Path, rows: Rows) -> None:
    """Writes one node's rows as .npy; `node.data.rows` reads and checks them."""
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    files.atomic_write(path, stream.getvalue())
