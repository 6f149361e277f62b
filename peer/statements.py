"""Who tells different neighbors different things is caught by those of them who share an edge.

Whatever a node says to all its neighbors alike (Say, a question, a Mix) ends with a signed digest. Each neighbor passes
the digests of a round on to its own neighbors in the next one; two that are signed by one node, for one place, and
differ, are a proof that anybody can check, and that nobody can make up. Where no two neighbors of a liar share an edge
nobody sees it.

A state machine without network: `note` what came, give `latest` to others, `compare` what others give.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from peer.message import Peer
from peer.v1 import peer_pb2 as pb

REMEMBERED = 8
"""Rounds: neighbors in one run differ by one, in quorum and async mode by some."""

Place: TypeAlias = tuple[int, int, int, int]
"""(incarnation, round, phase, role)."""


def place(said: pb.Statement) -> Place:
    return said.incarnation, said.round, said.phase, said.role


@dataclass(slots=True)
class Statements:
    """What each neighbor said, in the last REMEMBERED rounds of its own."""

    _of: dict[Peer, dict[Place, pb.Statement]] = field(default_factory=dict)

    def note(self, peer: Peer, said: pb.Statement) -> pb.Statement | None:
        """A statement came from the neighbor itself; the one that contradicts it, if another was heard before."""
        heard = self._of.setdefault(peer, {})
        before = heard.setdefault(place(said), said)
        oldest = said.round - REMEMBERED
        self._of[peer] = {where: it for where, it in heard.items() if oldest < where[1]}
        return before if before.digest != said.digest else None

    def of_round(self, round: int, but: Iterable[Peer]) -> list[pb.Statement]:
        """What the neighbors said in that round, without those of `but`."""
        others = sorted(self._of.keys() - set(but))
        return [said for peer in others for where, said in sorted(self._of[peer].items()) if where[1] == round]

    def contradicted(self, peer: Peer, said: pb.Statement) -> pb.Statement | None:
        """What the neighbor said here in the very place in which it is said to have said something else."""
        here = self._of.get(peer, {}).get(place(said))
        return here if here is not None and here.digest != said.digest else None
