"""Graphs over the sorted names of a roster, their Metropolis weights, and facts about them.

The graph is computed from the roster, never from membership views: views differ between nodes and W would lose its
symmetry. Failure detection only masks edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from peer.errors import ConfigurationError
from peer.message import Peer
from peer.neighborhood import Neighborhood

Graph: TypeAlias = Mapping[Peer, frozenset[Peer]]
"""Open neighbourhoods; undirected, connected, without self-loops."""


def ring(names: Sequence[Peer]) -> Graph:
    n = len(names)
    return {names[i]: frozenset({names[i - 1], names[(i + 1) % n]}) - {names[i]} for i in range(n)}


def full(names: Sequence[Peer]) -> Graph:
    return {name: frozenset(names) - {name} for name in names}


TOPOLOGIES: Mapping[str, Callable[[Sequence[Peer]], Graph]] = {"ring": ring, "full": full}
"""A new graph: one function and one line here."""


def graph(kind: str, names: Sequence[Peer]) -> Graph:
    """The named graph over `names`, which are sorted first.

    Raises:
        ConfigurationError: unknown kind, no names, or a name given twice.
    """
    if kind not in TOPOLOGIES:
        raise ConfigurationError(f"Unknown topology {kind!r}; choose one of {', '.join(sorted(TOPOLOGIES))}.")
    if not names or len(set(names)) != len(names):
        raise ConfigurationError("A topology needs at least one node, each with a name of its own.")
    return TOPOLOGIES[kind](sorted(names))


def metropolis(edges: Graph) -> dict[Peer, dict[Peer, float]]:
    """W: w_ij = 1/(1 + max(deg_i, deg_j)) on edges, the diagonal takes the rest. Symmetric, doubly stochastic."""
    rows: dict[Peer, dict[Peer, float]] = {}
    for i, around in sorted(edges.items()):
        row = {j: 1.0 / (1 + max(len(around), len(edges[j]))) for j in sorted(around)}
        row[i] = 1.0 - sum(row.values())
        rows[i] = dict(sorted(row.items()))
    return rows


def neighborhoods(kind: str, names: Sequence[Peer]) -> dict[Peer, Neighborhood]:
    """Every node's closed neighbourhood with its Metropolis weights."""
    rows = metropolis(graph(kind, names))
    return {name: Neighborhood(me=name, weight=row, nodes=len(names)) for name, row in rows.items()}
