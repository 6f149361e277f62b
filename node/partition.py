"""How a bundled data set is divided among nodes for experiments: disjoint parts of equal size.

Row numbers are int64, sorted. The same arguments give the same parts with the same numpy; `up` writes them to files.
What equal sizes leave over (fewer rows than nodes) belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.config import ExperimentSection
from peer.errors import ConfigurationError

Rows = NDArray[np.int64]


def divide(experiment: ExperimentSection, labels: Rows) -> list[Rows]:
    """The parts of all nodes as `[experiment]` asks.

    Raises:
        ConfigurationError: more nodes than rows.
    """
    if experiment.partition == "iid":
        return iid(len(labels), experiment.nodes, experiment.seed)
    return dirichlet(labels, experiment.nodes, experiment.alpha, experiment.seed)


def iid(n: int, nodes: int, seed: int) -> list[Rows]:
    """n rows, shuffled and cut into `nodes` parts of n // nodes."""
    size = _size(n, nodes)
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(order[k * size : (k + 1) * size]) for k in range(nodes)]


def dirichlet(labels: Rows, nodes: int, alpha: float, seed: int) -> list[Rows]:
    """The papers' split: every node draws class priors from Dirichlet(alpha), all nodes get the same number of rows.

    Rows are handed out one by one to nodes in random order; each takes a row of a class drawn from its priors among
    the classes that are left, so late rows stray from the priors when a class runs out. labels: int64 [n].
    """
    size, generator = _size(len(labels), nodes), np.random.default_rng(seed)
    stock = [list(generator.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)]
    priors = generator.dirichlet(np.full(len(stock), alpha), nodes)
    left = np.array([len(rows) for rows in stock], dtype=np.float64)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    order = generator.permutation(np.repeat(np.arange(nodes), size))
    for node, draw in zip(order, generator.random(len(order)), strict=True):
        label = _choose(priors[node], left, draw)
        parts[node].append(stock[label].pop())
        left[label] -= 1
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in parts]


def _choose(prior: NDArray[np.float64], left: NDArray[np.float64], draw: float) -> int:
    """A class with rows left, drawn from the prior; from what is left where the prior excludes all of it."""
    weights = np.where(left > 0, prior, 0.0)
    if not weights.sum() > 0:
        weights = left
    total = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return min(int(np.searchsorted(total, draw * total[-1], side="right")), last)


def _size(n: int, nodes: int) -> int:
    if nodes > n:
        raise ConfigurationError(f"experiment.nodes = {nodes} is more than the {n} examples there are to share.")
    return n // nodes


def union(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts: what `centralised` learns from."""
    return np.sort(np.concatenate(parts))


def histogram(labels: Rows, parts: Sequence[Rows], classes: int) -> NDArray[np.int64]:
    """Examples per node and class, int64 [nodes, classes]. Of public data sets only: on private ones it is private."""
    return np.array([np.bincount(labels[rows], minlength=classes) for rows in parts], dtype=np.int64)


def save(path: Path, rows: Rows) -> None:
    """Writes one node's rows as .npy; `node.data.rows` reads and checks them."""
    with path.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)
