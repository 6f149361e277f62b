"""Who tells different neighbors different things is caught by those of them who share an edge.

Whatever a node says to all its neighbors alike (Say, a question, a Mix) ends with a signed digest.
Each neighbor passes on what it heard, in the next header to each of its own neighbors; two digests
that one node signed for one place, and that differ, are a proof that anybody can check, and that
nobody can make up. Where no two neighbors of a liar share an edge nobody sees it.

A state machine without network: `note` what came, give `newer` to others, ask what is
`contradicted` by what they say.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeAlias

from peer.message import Peer
from peer.v1 import peer_pb2 as pb

PLACES = 64
"""Of each neighbor, the newest ones are remembered: some rounds, however it counts them."""

Place: TypeAlias = tuple[int, int, int, int]
"""(incarnation, round, phase, role)."""


def place(statement: pb.Statement) -> Place:
    return statement.incarnation, statement.round, statement.phase, statement.role


@dataclass(slots=True)
class Statements:
    """What each neighbor said, in the order in which it came."""

    noted: int = 0
    """How many there were, ever."""
    _of: dict[Peer, dict[Place, tuple[int, pb.Statement]]] = field(default_factory=dict)

    def note(self, peer: Peer, statement: pb.Statement) -> pb.Statement | None:
        """A statement came from the neighbor itself; the one that contradicts it, if another was
        heard before.
        """
        heard = self._of.setdefault(peer, {})
        if (known := heard.get(place(statement))) is not None:
            return known[1] if known[1].digest != statement.digest else None
        self.noted += 1
        heard[place(statement)] = (self.noted, statement)
        if len(heard) > PLACES:
            del heard[next(iter(heard))]
        return None

    def newer(self, than: int, but: Collection[Peer]) -> list[pb.Statement]:
        """What came after the first `than` of all, without the neighbors of `but`; the newest
        last.
        """
        entries = [
            entry
            for peer, heard in self._of.items()
            if peer not in but
            for entry in heard.values()
            if entry[0] > than
        ]
        return [statement for _, statement in sorted(entries, key=lambda entry: entry[0])]

    def contradicted(self, peer: Peer, statement: pb.Statement) -> pb.Statement | None:
        """What the neighbor said here in the very place in which it is said to have said something
        else.
        """
        _, here = self._of.get(peer, {}).get(place(statement), (0, None))
        return here if here is not None and here.digest != statement.digest else None
