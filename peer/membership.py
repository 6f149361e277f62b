"""Who of my neighbors is there: a state machine without clock or network; `now` (seconds,
monotonic) is an argument.

Slow is not dead. A neighbor is excused as long as it shows progress: its counter of work done
moves, bytes of its transfers arrive, it still gathers its neighbors before its first round, or it
waits for somebody other than me who shows progress. Only who shows none of that for a whole
deadline is lost. How long ago there was progress anywhere down the chain of waiting travels in the
beats (`idle`), and grows in a circle of nodes that wait for each other, so such a circle is broken.

    unknown ── agree ──> live ── lose ──> lost ── agree ──> live
                          └──── leave ──> left | finished

A neighbor that is removed from the roster is that for good.

An edge is used from the round on both ends agreed to in the handshake (`live_from`), never before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from peer.message import Peer

PATIENCE = 4
"""Deadlines without progress anywhere down the chain after which waiting for others is no excuse
any more: whoever is to blame has been lost by its own neighbors by then."""
FASTER = 10
"""How many times as fast as this node's quickest round a neighbor's rounds may be while nobody
holds it up.
"""
MISSED_BEATS = 2
"""Consecutive beats that do not name me before I believe that the other end dropped the edge."""


def majority(degree: int) -> int:
    """How many of `degree` graph neighbors have to say a thing before it moves this node: more than
    half of all, be they there or not, and never one alone."""
    return max(2, degree // 2 + 1)


class Presence(Enum):
    UNKNOWN = "unknown"
    LIVE = "live"
    LOST = "lost"
    LEFT = "left"
    FINISHED = "finished"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a neighbor says of itself about once a second."""

    incarnation: int
    order: int
    """Grows with every message of its process."""
    round: int
    """The one it is inside, -1 outside."""
    phase: int
    progress: int
    """A counter that grows when anything moved there."""
    waiting_for: frozenset[Peer]
    idle: float
    """Seconds since the last progress of the neighbor or of anybody it waits for."""
    names_me: bool
    """It uses the edge to this node."""

    @property
    def gathers(self) -> bool:
        """It waits for its neighbors before its first round."""
        return self.round < 0 and bool(self.waiting_for)


@dataclass(slots=True)
class Neighbor:
    presence: Presence = Presence.UNKNOWN
    live_from: int = 0
    confirmed: bool = False
    """Both ends know that the edge was agreed on: the answer to the proposal may have been lost."""
    incarnation: int = 0
    round: int = -1
    """Round the neighbor is inside, -1 outside, as its last beat said: many fast rounds may have
    passed since.
    """
    reached: int = -1
    """The latest round it is known to have entered, by beats and by what came of it."""
    phase: int = 0
    waiting_for: frozenset[Peer] = frozenset()
    last_heard: float = float("-inf")
    last_work: float = float("-inf")
    """When its counter last moved or its bytes last arrived."""
    last_excuse: float = float("-inf")
    """The same, or when it last said that it waits for somebody else."""
    last_error: str = ""
    refusal: str = ""
    """What keeps the two apart for good, such as another run file; until an edge is agreed on."""
    rtt: float | None = None
    """Seconds."""
    barred_until: float = float("-inf")
    """It is not taken back before."""
    shown: tuple[int, float] | None = None
    """The last round of which a transfer came, and when: what the neighbor says beside that has to
    be plausible.
    """
    _order: int = 0
    """Of the newest thing it said: beats overtake each other, and an agreement on the edge."""
    _idle_since: float = float("-inf")
    _lost_at: int | None = None
    """Its counter when the edge was lost."""
    _progress: int = 0
    _unnamed: int = 0

    @property
    def trouble(self) -> str:
        """What is wrong with it, if anything: that it left, or does not answer any more, says less
        than a refusal.
        """
        return self.refusal or self.last_error


@dataclass(slots=True)
class Membership:
    """All neighbors of one node. Times in seconds of any one monotonic clock."""

    me: Peer
    deadline: float
    neighbors: dict[Peer, Neighbor] = field(default_factory=dict)

    @classmethod
    def of(cls, me: Peer, peers: Iterable[Peer], deadline: float) -> Membership:
        return cls(me=me, deadline=deadline, neighbors={peer: Neighbor() for peer in sorted(peers)})

    def live(self, round: int) -> frozenset[Peer]:
        """The neighbors whose edge is in use in this round."""
        return frozenset(
            peer
            for peer, it in self.neighbors.items()
            if it.presence is Presence.LIVE and it.live_from <= round
        )

    def agreed(self) -> dict[Peer, int]:
        """live_from of every edge that is or will be in use, as both ends know."""
        stands = {
            p: it
            for p, it in self.neighbors.items()
            if it.presence is Presence.LIVE and it.confirmed
        }
        return {peer: it.live_from for peer, it in stands.items()}

    def present(self) -> frozenset[Peer]:
        """Neighbors whose edge stands, be it that they are done with all rounds."""
        stands = (Presence.LIVE, Presence.FINISHED)
        return frozenset(peer for peer, it in self.neighbors.items() if it.presence in stands)

    def finished(self) -> frozenset[Peer]:
        """Neighbors that are done with all rounds."""
        return frozenset(
            peer for peer, it in self.neighbors.items() if it.presence is Presence.FINISHED
        )

    def removed(self) -> frozenset[Peer]:
        """Neighbors that are in the roster no more."""
        return frozenset(
            peer for peer, it in self.neighbors.items() if it.presence is Presence.REMOVED
        )

    def remove(self, peer: Peer) -> None:
        """The roster dropped the neighbor: its edge is lost for good."""
        it = self.neighbors[peer]
        it.presence, it.last_error, it.refusal = (
            Presence.REMOVED,
            "It was removed from the roster.",
            "",
        )

    def agree(
        self,
        peer: Peer,
        *,
        live_from: int,
        incarnation: int,
        round: int,
        order: int = 0,
        now: float,
        confirmed: bool = True,
    ) -> None:
        """The handshake is done: the edge is used from `live_from` on, at both ends. The end that
        answered does not know yet whether its answer came (`confirmed` False); a beat or transfer
        will tell."""
        it = self.neighbors[peer]
        if it.presence is Presence.REMOVED:
            return
        it.confirmed = confirmed
        it._order = max(it._order, order) if incarnation == it.incarnation else order
        it.presence, it.live_from, it.incarnation = Presence.LIVE, live_from, incarnation
        it.round = it.reached = round
        it.last_heard = it.last_work = it.last_excuse = now
        it.waiting_for, it.last_error, it.refusal, it._unnamed = frozenset(), "", "", 0

    def restarted(self, peer: Peer, incarnation: int) -> None:
        """Another process of the neighbor speaks: the old edge is over, a new one can be agreed
        on.
        """
        it = self.neighbors[peer]
        if it.presence is Presence.REMOVED:
            return
        if it.presence is Presence.LIVE:
            self.lose(peer, "It was restarted.")
        it.presence, it.incarnation, it._lost_at, it._order = Presence.UNKNOWN, incarnation, None, 0
        it.round = it.reached = -1

    def start_waiting(self, peers: Iterable[Peer], now: float) -> None:
        """From now on these are waited for: what they did before does not count against them."""
        for peer in peers:
            it = self.neighbors[peer]
            it.last_work = it.last_excuse = max(it.last_excuse, now)

    def moved(self, peer: Peer, now: float) -> None:
        """Bytes from or to the neighbor moved."""
        it = self.neighbors[peer]
        it.last_heard = it.last_work = it.last_excuse = now
        it.confirmed = True

    def entered(self, peer: Peer, round: int, now: float) -> None:
        """A transfer of that round came from the neighbor."""
        it = self.neighbors[peer]
        it.reached = max(it.reached, round)
        it.shown = (round, now)

    def most_have_reached(self, now: float, *, quickest: float | None, heartbeats: bool) -> int:
        """The latest round that a strict majority of all neighbors, and two at least, claim to be
        at; -1 if none. So one neighbor alone moves this node nowhere, whatever it says.

        A claim is the round from which its edge is used, with `heartbeats` also the one after that
        which it is in. It counts as far as it is plausible: rounds that can have passed since its
        last transfer, none of them FASTER times as quick as `quickest` (seconds; None: nothing is
        known of how long rounds take).
        """
        claims = []
        for it in self.neighbors.values():
            if it.presence is not Presence.LIVE or not it.confirmed:
                continue
            claim = max(it.live_from, it.reached + 1) if heartbeats else it.live_from
            if it.shown is not None and quickest:
                since_round, since = it.shown
                claim = min(claim, since_round + 2 + int((now - since) * FASTER / quickest))
            claims.append(claim)
        needed = majority(len(self.neighbors))
        return sorted(claims)[-needed] if len(claims) >= needed else -1

    def heartbeat(self, peer: Peer, said: Heartbeat, now: float) -> None:
        """A sign of life. Heartbeats of an earlier process, and overtaken ones, are ignored; those
        of a later one end the edge.
        """
        it = self.neighbors[peer]
        if said.incarnation < it.incarnation:
            return
        if said.incarnation > it.incarnation:
            if it.presence is Presence.LIVE:
                self.lose(peer, "It was restarted.")
            it._lost_at = None
            return
        if said.order <= it._order:
            return
        it._order = said.order
        it.last_heard = now
        it.reached = max(it.reached, said.round)
        if (said.progress, said.round, said.phase) != (it._progress, it.round, it.phase):
            it.last_work = it.last_excuse = now
        if said.gathers or (
            said.waiting_for
            and self.me not in said.waiting_for
            and said.idle < PATIENCE * self.deadline
        ):
            it.last_excuse = now
        it._idle_since = now if said.gathers else now - said.idle
        it._progress, it.round, it.phase = said.progress, said.round, said.phase
        it.waiting_for = said.waiting_for
        it._unnamed = 0 if said.names_me or not it.confirmed else it._unnamed + 1
        it.confirmed |= said.names_me
        if it.presence is Presence.LIVE and it._unnamed >= MISSED_BEATS:
            self.lose(peer, "It no longer uses this edge.")

    def idle(self, peer: Peer, now: float) -> float:
        """Seconds since the last progress of this neighbor, or of anybody down the chain it waits
        for.
        """
        it = self.neighbors[peer]
        return now - max(it.last_work, it._idle_since)

    def overdue(self, peer: Peer, now: float) -> bool:
        """No excuse for a whole deadline."""
        return now - self.neighbors[peer].last_excuse > self.deadline

    def until(self, peer: Peer) -> float:
        """When the neighbor will be lost unless it shows progress."""
        return self.neighbors[peer].last_excuse + self.deadline

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        """The edge is lost until a new handshake; `idle`: and until the neighbor moves."""
        it = self.neighbors[peer]
        if it.presence in (Presence.LIVE, Presence.UNKNOWN):
            it.presence, it.last_error, it._lost_at = (
                Presence.LOST,
                why,
                it._progress if idle else None,
            )

    def bar(self, peer: Peer, until: float) -> None:
        """It is not taken back before, be it another process by then."""
        it = self.neighbors[peer]
        it.barred_until = max(it.barred_until, until)

    def kept_off(self, peer: Peer, incarnation: int, now: float) -> str:
        """Why no edge is agreed on with this process of it yet, in a sentence; empty if nothing
        speaks against it.
        """
        it = self.neighbors[peer]
        if (
            it.presence is Presence.LOST
            and incarnation == it.incarnation
            and it._lost_at == it._progress
        ):
            return "Nothing has moved at the caller since the edge was lost."
        if it.barred_until == inf:
            return "The caller told its neighbors different things."
        if now < it.barred_until:
            return f"The caller held this node up too often; it is taken back in {it.barred_until - now:.0f} s."
        return ""

    def leave(self, peer: Peer, *, incarnation: int, finished: bool) -> None:
        """The neighbor said goodbye."""
        it = self.neighbors[peer]
        if incarnation >= it.incarnation and it.presence is not Presence.REMOVED:
            it.presence = Presence.FINISHED if finished else Presence.LEFT
            it.last_error = "" if finished else "It left."
