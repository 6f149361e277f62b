"""Which transfer is let in when: a state machine without clock or network.

A transfer is known by (round, phase, role) and its sender. It is

    admitted   when this node has opened that phase and expects exactly this kind, layout and size;
    parked     when it belongs to a phase still to come in this round or to the next round: it is not read past its
               header, and there is at most one per sender, phase and role;
    refused    otherwise, with a code that says why.

A peer chooses no sizes: they come from this node's own opening.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from peer.message import DType, Peer

ASYNC_AHEAD = 64
"""Rounds ahead that are let in in async mode, where nobody waits; bounds what one neighbor makes
others keep.
"""
ROUNDS_AHEAD = 1
"""A neighbor that has heard me in every round can be one round ahead, no more."""
REMEMBERED = 2
"""Rounds for which deliveries are remembered: a sender that lost the verdict tries again and must
hear "duplicate".
"""
PARKED_PER_PEER = 4
"""A question, an answer, a Say and a Mix can wait at a time; more is a flood."""


class Role(IntEnum):
    """Numbers as in peer.proto."""

    SAY = 1
    QUESTION = 2
    ANSWER = 3
    MIX = 4


class Admission(Enum):
    ADMIT = "admit"
    PARK = "park"
    STALE = "stale"
    AHEAD = "ahead"
    DUPLICATE = "duplicate"
    BUSY = "busy"
    KIND = "kind"
    LAYOUT = "layout"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    round: int
    phase: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is expected of, or announced by, a transfer's payload."""

    kind: str
    layout: bytes
    parts: int
    dtype: DType
    nbytes: int


class Mailbox:
    """One node's openings and what has come for them."""

    def __init__(self, staleness: int | None = None) -> None:
        self.round = -1
        self.phase = 0
        self.staleness = staleness
        """None: rounds must be equal. τ: transfers up to τ rounds old, or newer, are let into an
        open phase (async).
        """
        self._open: dict[tuple[int, Role], tuple[int, Shape, frozenset[Peer]]] = {}
        """(phase, role) -> the round it was opened in, what is expected, of whom. In async they
        outlive their round.
        """
        self._left: set[Key] = set()
        self._receiving: set[tuple[Peer, Key]] = set()
        self._delivered: set[tuple[Peer, Key]] = set()
        self._parked: set[tuple[Peer, Key]] = set()

    def begin(self, round: int) -> None:
        """A new round: everything of earlier rounds is over."""
        self.round, self.phase = round, 0
        if self.staleness is None:
            self._open.clear()
        self._left.clear()
        self._receiving.clear()
        oldest = round - max(REMEMBERED, self.staleness or 0)
        self._delivered = {it for it in self._delivered if it[1].round >= oldest}

    def open(self, key: Key, shape: Shape, peers: Iterable[Peer]) -> None:
        """From now on these neighbors' transfers of that phase and role are admitted."""
        self.phase = max(self.phase, key.phase)
        self._open[key.phase, key.role] = (key.round, shape, frozenset(peers))

    def close(self, key: Key) -> None:
        """The verb was left; what still comes for it is stale."""
        self._open.pop((key.phase, key.role), None)
        self._left.add(key)

    def offer(
        self, peer: Peer, key: Key, shape: Shape, *, withheld: bool = False, parked: bool = False
    ) -> Admission:
        """What to do with a transfer whose header came. `parked`: it is offered again after
        waiting.
        """
        this = (peer, key)
        if parked:
            self._parked.discard(this)
        if this in self._delivered:
            return Admission.DUPLICATE
        if this in self._receiving or this in self._parked:
            return Admission.BUSY
        round, expected, peers = self._open.get(
            (key.phase, key.role), (-1, shape, frozenset[Peer]())
        )
        if round < 0 or (key.round != round and not self._timeless(key)):
            return self._unopened(this)
        if peer not in peers:
            return Admission.STALE
        if shape.kind != expected.kind:
            return Admission.KIND
        if not withheld and shape != expected:
            return Admission.LAYOUT
        if withheld and (key.role is not Role.ANSWER or shape.nbytes != 0):
            return Admission.KIND
        self._receiving.add(this)
        return Admission.ADMIT

    def delivered(self, peer: Peer, key: Key) -> None:
        """The whole transfer arrived."""
        self._receiving.discard((peer, key))
        self._delivered.add((peer, key))

    def broken(self, peer: Peer, key: Key) -> None:
        """The transfer ended early (or stopped waiting); the sender may try again."""
        self._receiving.discard((peer, key))
        self._parked.discard((peer, key))

    def _timeless(self, key: Key) -> bool:
        return (
            self.staleness is not None
            and self.round - self.staleness <= key.round <= self.round + ASYNC_AHEAD
        )

    def _unopened(self, this: tuple[Peer, Key]) -> Admission:
        peer, key = this
        if key in self._left or (key.round, key.phase) < (self.round, self.phase):
            return Admission.STALE
        if key.round > self.round + (ROUNDS_AHEAD if self.staleness is None else ASYNC_AHEAD):
            return Admission.AHEAD
        if key.role is Role.ANSWER:
            return Admission.STALE if key.round == self.round else Admission.KIND
        if any(
            key.round == round and key.phase == phase
            for (phase, _), (round, _, _) in self._open.items()
        ):
            return Admission.KIND
        if sum(1 for other, _ in self._parked if other == peer) >= PARKED_PER_PEER:
            return Admission.BUSY
        self._parked.add(this)
        return Admission.PARK
