"""One node's view of the graph: itself, its neighbors and its row of the mixing matrix W."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peer.errors import ConfigurationError
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


@dataclass(frozen=True, slots=True)
class View:
    """A node's neighborhood as one version of the roster has it."""

    neighborhood: Neighborhood
    version: int = 1
    effective_round: int = 0
    """The first round in which it counts."""


class Views:
    """The views of a run; a round asks for its own (`at`), and nothing keeps one."""

    def __init__(self, first: View) -> None:
        """`first` counts until a later one does, whatever its `effective_round`."""
        self._views = [first]

    def adopt(self, view: View) -> None:
        """Takes the view of a newer version of the roster.

        Raises:
            ConfigurationError: it has neighbors that the run did not begin with, for whom the noise
                was not calibrated.
        """
        began = self._views[0].neighborhood.neighbors
        if unknown := sorted({*view.neighborhood.neighbors} - {*began}):
            raise ConfigurationError(
                f"Version {view.version} of the roster gives this node the neighbor {unknown[0]}; "
                f"the noise of this run was calibrated for the {len(began)} it began with. "
                "Start a new run."
            )
        self._views.append(view)

    def at(self, t: int) -> View:
        """The newest view that counts in round t."""
        effective = [view for view in self._views[1:] if view.effective_round <= t]
        return effective[-1] if effective else self._views[0]
