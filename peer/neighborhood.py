"""One node's view of the graph: itself, its neighbors and its row of the mixing matrix W."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peer.message import Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighborhood:
    """`weight` is row i of W over the closed neighborhood (me included), as float64; it sums to
    1.
    """

    me: Peer
    weight: Mapping[Peer, float]
    nodes: int
    """N: all agents of the roster in force, also while some are down."""

    @property
    def neighbors(self) -> tuple[Peer, ...]:
        return tuple(sorted(peer for peer in self.weight if peer != self.me))

    @property
    def degree(self) -> int:
        return len(self.weight) - 1

    def without(self, lost: Iterable[Peer]) -> Neighborhood:
        """The row when edges are lost: their weight goes to self, so W stays doubly stochastic if
        both ends drop.
        """
        gone = frozenset(lost) & frozenset(self.neighbors)
        weight = {peer: w for peer, w in self.weight.items() if peer not in gone}
        weight[self.me] += sum(self.weight[peer] for peer in sorted(gone))
        return Neighborhood(me=self.me, weight=weight, nodes=self.nodes)
