"""Which transfer is let in when: a state machine without clock or network.

A transfer is known by (round, phase, role) and its sender. It is

    admitted   when this node has opened that phase and expects exactly this kind, layout and size;
    parked     when it belongs to a phase still to come in this round or to the next round: it is
               not read past its header, and there is at most one per sender, phase and role;
    refused    otherwise, with a code that says why.

A peer chooses no sizes: they come from the phases that this node opened.
"""

from __future__ import annotations

from enum import Enum

from peer.message import Peer
from peer.session.interfaces import Key, OpenPhase, Role, Shape

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


class Admission(Enum):
    ADMIT = "admit"
    PARK = "park"
    STALE = "stale"
    AHEAD = "ahead"
    DUPLICATE = "duplicate"
    BUSY = "busy"
    KIND = "kind"
    LAYOUT = "layout"


class Mailbox:
    """The phases that one node has open, and what has come for them."""

    def __init__(self, staleness: int | None = None) -> None:
        self.round = -1
        self.staleness = staleness
        """None: rounds must be equal. τ: transfers up to τ rounds old, or newer, are let into an
        open phase (async).
        """
        self.current: OpenPhase | None = None
        """The furthest phase that was opened in this round."""
        self._open: dict[tuple[int, Role], OpenPhase] = {}
        """By (phase, role). In async they outlive their round."""
        self._left: set[Key] = set()
        self._receiving: set[tuple[Peer, Key]] = set()
        self._delivered: set[tuple[Peer, Key]] = set()
        self._parked: set[tuple[Peer, Key]] = set()

    def begin(self, round: int) -> None:
        """A new round: everything of earlier rounds is over."""
        self.round, self.current = round, None
        if self.staleness is None:
            self._open.clear()
        self._left.clear()
        self._receiving.clear()
        oldest = round - max(REMEMBERED, self.staleness or 0)
        self._delivered = {it for it in self._delivered if it[1].round >= oldest}

    def open(self, phase: OpenPhase) -> None:
        """From now on the transfers that this phase expects are admitted."""
        if self.current is None or phase.key.phase >= self.current.key.phase:
            self.current = phase
        self._open[phase.key.phase, phase.key.role] = phase

    def close(self, key: Key) -> None:
        """The verb was left; what still comes for it is stale."""
        self._open.pop((key.phase, key.role), None)
        self._left.add(key)

    def admitting(self, key: Key) -> OpenPhase | None:
        """The open phase that a transfer of this key belongs to."""
        phase = self._open.get((key.phase, key.role))
        if phase is None or (key.round != phase.key.round and not self._timeless(key)):
            return None
        return phase

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
        phase = self.admitting(key)
        if phase is None:
            return self._unopened(this)
        if peer not in phase.expected:
            return Admission.STALE
        if shape.kind != phase.shape.kind:
            return Admission.KIND
        if not withheld and shape != phase.shape:
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
        furthest = 0 if self.current is None else self.current.key.phase
        if key in self._left or (key.round, key.phase) < (self.round, furthest):
            return Admission.STALE
        if key.round > self.round + (ROUNDS_AHEAD if self.staleness is None else ASYNC_AHEAD):
            return Admission.AHEAD
        if key.role is Role.ANSWER:
            return Admission.STALE if key.round == self.round else Admission.KIND
        if any(
            (key.round, key.phase) == (open.key.round, open.key.phase)
            for open in self._open.values()
        ):
            return Admission.KIND
        if sum(1 for other, _ in self._parked if other == peer) >= PARKED_PER_PEER:
            return Admission.BUSY
        self._parked.add(this)
        return Admission.PARK
