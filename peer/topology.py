"""Graphs over the sorted names of a roster, and the mixing matrix W on them.

The graph is a function of the roster and the run file, never of membership views: views differ
between nodes and W would lose its symmetry. Failure detection only masks edges.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from math import isqrt, log
from typing import TypeAlias

from peer.errors import ConfigurationError
from peer.message import Peer
from peer.neighborhood import Neighborhood

Graph: TypeAlias = Mapping[Peer, frozenset[Peer]]
"""Open neighborhoods; undirected, connected, without self-loops."""
Edge: TypeAlias = tuple[Peer, Peer] | tuple[Peer, Peer, float]
"""Two nodes, and where W is given w_ij; of a node with itself w_ii."""
Weights: TypeAlias = Mapping[Peer, Mapping[Peer, float]]
"""Rows of W over closed neighborhoods, float64."""

ATTEMPTS = 1000
"""Erdős–Rényi graphs that are drawn before giving up on a connected one."""
TOLERANCE = 1e-5
"""What the sums of a given W may miss 1 by: six decimals of it were written down. The diagonal then
takes the rest.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What some graphs need beside the names."""

    p: float = 0.3
    """erdos-renyi: probability of each edge."""
    seed: int = 0
    """erdos-renyi: of the draw."""
    edges: Sequence[Edge] = ()
    """edges: the graph itself, with or without W."""


Edges: TypeAlias = Iterable[tuple[Peer, Peer]]
"""In any order and direction, also twice; of a node with itself they don't count."""


def ring(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    yield from pairwise([*names, names[0]])


def full(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    yield from combinations(names, 2)


def star(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """The first name is the hub."""
    yield from product(names[:1], names)


def bipartite(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """Complete: every even name with every odd one."""
    yield from product(names[::2], names[1::2])


def grid(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """Row by row in a rectangle as square as N allows."""
    for line in (*_rows(names), *zip(*_rows(names), strict=True)):
        yield from pairwise(line)


def torus(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """A grid whose rows and columns are rings."""
    for line in (*_rows(names), *zip(*_rows(names), strict=True)):
        yield from ring(line, wiring)


def _rows(names: Sequence[Peer]) -> list[Sequence[Peer]]:
    n = len(names)
    rows = next(r for r in range(isqrt(n), 0, -1) if n % r == 0)
    if rows == 1 and n > 2:
        raise ConfigurationError(
            f"{n} nodes can't be laid out in rows and columns; take {n - 1} or {n + 1}."
        )
    return [names[start : start + n // rows] for start in range(0, n, n // rows)]


def hypercube(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """Numbers that differ in one bit."""
    bits = len(names).bit_length() - 1
    if len(names) != 1 << bits:
        raise ConfigurationError(
            f"A hypercube needs 2, 4, 8, … nodes, not {len(names)}; take {1 << bits} or "
            f"{2 << bits}."
        )
    for i, k in product(range(len(names)), range(bits)):
        yield names[i], names[i ^ 1 << k]


def exponential(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """i and i ± 2^k for all 2^k < N, counted round the ring."""
    n = len(names)
    for i, k in product(range(n), range((n - 1).bit_length())):
        yield names[i], names[(i + (1 << k)) % n]


def erdos_renyi(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """Every edge with probability p; drawn again until the graph is connected.

    Raises:
        ConfigurationError: none of ATTEMPTS draws was.
    """
    chance = random.Random(f"erdos-renyi {wiring.seed}")
    for _ in range(ATTEMPTS):
        pairs = [pair for pair in combinations(names, 2) if chance.random() < wiring.p]
        if not unreachable(undirected(names, pairs)):
            return pairs
    raise ConfigurationError(
        f"None of {ATTEMPTS} Erdős–Rényi graphs of {len(names)} nodes with topology.p = "
        f"{wiring.p:g} is connected; "
        f"raise it (to ln(N)/N = {log(len(names)) / len(names):.2g} or more)."
    )


def given(names: Sequence[Peer], wiring: GraphOptions) -> Edges:
    """The edges of the run file.

    Raises:
        ConfigurationError: there are none, or they name something that is not a node.
    """
    if not wiring.edges:
        raise ConfigurationError(
            'topology.kind = "edges" needs edges: name a file of them (topology.file) or list '
            "them (topology.edges)."
        )
    for edge in wiring.edges:
        if unknown := {*edge[:2]} - {*names}:
            raise ConfigurationError(
                f"topology.edges names {min(unknown)}, which is not a node; there are "
                f"{_some(names)}."
            )
    return [edge[:2] for edge in wiring.edges]


def _some(names: Sequence[Peer]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


TOPOLOGIES: Mapping[str, Callable[[Sequence[Peer], GraphOptions], Edges]] = {
    "ring": ring,
    "full": full,
    "star": star,
    "bipartite": bipartite,
    "grid": grid,
    "torus": torus,
    "hypercube": hypercube,
    "exponential": exponential,
    "erdos-renyi": erdos_renyi,
    "edges": given,
}
"""A new graph: one function and one line here."""


def graph(kind: str, names: Sequence[Peer], wiring: GraphOptions = GraphOptions()) -> Graph:
    """The graph of this kind over `names`, which are sorted first.

    Raises:
        ConfigurationError: unknown kind; no names, or a name given twice; not to be had with so
            many nodes; not connected.
    """
    if kind not in TOPOLOGIES:
        raise ConfigurationError(
            f"Unknown topology {kind!r}; choose one of {', '.join(sorted(TOPOLOGIES))}."
        )
    if not names or len(set(names)) != len(names):
        raise ConfigurationError("A topology needs at least one node, each with a name of its own.")
    names = sorted(names)
    edges = undirected(names, TOPOLOGIES[kind](names, wiring))
    if alone := unreachable(edges):
        raise ConfigurationError(
            f"The graph is not connected: no way leads from {names[0]} to {min(alone)}; add an "
            "edge between them."
        )
    return edges


def undirected(names: Sequence[Peer], edges: Edges) -> Graph:
    """The open neighborhoods of all names."""
    around: dict[Peer, set[Peer]] = {name: set() for name in names}
    for a, b in edges:
        around[a].add(b)
        around[b].add(a)
    return {name: frozenset(others - {name}) for name, others in around.items()}


def unreachable(edges: Graph) -> set[Peer]:
    """Nodes to which no way leads from the first; empty: the graph is connected."""
    first, *rest = edges
    left, fresh = set(rest), [first]
    while fresh:
        reached = edges[fresh.pop()] & left
        left -= reached
        fresh.extend(reached)
    return left


def metropolis(edges: Graph) -> dict[Peer, dict[Peer, float]]:
    """W: w_ij = 1/(1 + max(deg_i, deg_j)) on edges, the diagonal takes the rest. Symmetric, doubly
    stochastic.
    """
    return {
        i: _row(i, {j: 1.0 / (1 + max(len(around), len(edges[j]))) for j in sorted(around)})
        for i, around in sorted(edges.items())
    }


def _row(i: Peer, others: Mapping[Peer, float]) -> dict[Peer, float]:
    """Row i of W: the diagonal takes what `others` leave."""
    return dict(sorted({**others, i: 1.0 - sum(others.values())}.items()))


def weighted(names: Sequence[Peer], edges: Sequence[Edge]) -> dict[Peer, dict[Peer, float]]:
    """W as it is given with the edges; the diagonal may be left out.

    Raises:
        ConfigurationError: an edge has no weight, or W is none: see `refuse`.
    """
    rows: dict[Peer, dict[Peer, float]] = {name: {} for name in names}
    for edge in edges:
        if len(edge) == 2:
            raise ConfigurationError(
                f"topology.edges gives {'–'.join(edge)} no weight; give all edges one, or none."
            )
        a, b, w = edge
        if (
            abs(rows[a].setdefault(b, w) - w) > TOLERANCE
            or abs(rows[b].setdefault(a, w) - w) > TOLERANCE
        ):
            raise ConfigurationError(
                f"topology.edges gives {a}–{b} two weights; W must be symmetric."
            )
    for i, row in rows.items():
        row.setdefault(i, 1.0 - sum(row.values()))
    refuse(rows)
    return {
        i: _row(i, {j: row[j] for j in sorted(row) if j != i}) for i, row in sorted(rows.items())
    }


def refuse(rows: Weights) -> None:
    """Lets a W pass that is symmetric, doubly stochastic and positive on its graph and on the
    diagonal.

    Raises:
        ConfigurationError: one sentence.
    """
    for i, row in rows.items():
        for j, w in row.items():
            if not 0 < w <= 1:
                raise ConfigurationError(
                    f"W has {w:g} for {i}–{j}; on edges and on the diagonal it must be above 0."
                )
            if abs(rows[j].get(i, 0.0) - w) > TOLERANCE:
                raise ConfigurationError(
                    f"W is not symmetric: {w:g} for {i}–{j}, but {rows[j].get(i, 0.0):g} back."
                )
        if abs(sum(row.values()) - 1) > TOLERANCE:
            raise ConfigurationError(
                f"The weights of {i} in W add up to {sum(row.values()):g}; each row must give 1."
            )


def make_neighborhoods(
    kind: str, names: Sequence[Peer], wiring: GraphOptions = GraphOptions()
) -> dict[Peer, Neighborhood]:
    """Every node's closed neighborhood with its weights: the given ones, else Metropolis.

    Raises:
        ConfigurationError: see `graph` and `weighted`.
    """
    edges = graph(kind, names, wiring)
    own = kind == "edges" and any(len(edge) == 3 for edge in wiring.edges)
    rows = weighted(sorted(names), wiring.edges) if own else metropolis(edges)
    return {name: Neighborhood(me=name, weight=row, nodes=len(names)) for name, row in rows.items()}
