"""Who of my neighbors is there: a state machine without clock or network; `now` (seconds,
monotonic) is an argument.

Slow is not dead. A neighbor is excused as long as it shows progress: its counter of work done
moves, bytes of its transfers arrive, it still gathers its neighbors before its first round, or it
waits for somebody other than me who shows progress. Only who shows none of that for a whole
deadline is lost. How long ago there was progress anywhere down the chain of waiting travels in the
beats (`idle`), and grows in a cycle of nodes that wait for each other, so that such a cycle ends.

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
            for peer, neighbor in self.neighbors.items()
            if neighbor.presence is Presence.LIVE and neighbor.live_from <= round
        )

    def agreed(self) -> dict[Peer, int]:
        """live_from of every edge that is or will be in use, as both ends know."""
        return {
            peer: neighbor.live_from
            for peer, neighbor in self.neighbors.items()
            if neighbor.presence is Presence.LIVE and neighbor.confirmed
        }

    def present(self) -> frozenset[Peer]:
        """Neighbors whose edge stands, be it that they are done with all rounds."""
        stands = (Presence.LIVE, Presence.FINISHED)
        return frozenset(
            peer for peer, neighbor in self.neighbors.items() if neighbor.presence in stands
        )

    def finished(self) -> frozenset[Peer]:
        """Neighbors that are done with all rounds."""
        return frozenset(
            peer
            for peer, neighbor in self.neighbors.items()
            if neighbor.presence is Presence.FINISHED
        )

    def removed(self) -> frozenset[Peer]:
        """Neighbors that are in the roster no more."""
        return frozenset(
            peer
            for peer, neighbor in self.neighbors.items()
            if neighbor.presence is Presence.REMOVED
        )

    def remove(self, peer: Peer) -> None:
        """The roster dropped the neighbor: its edge is lost for good."""
        neighbor = self.neighbors[peer]
        neighbor.presence = Presence.REMOVED
        neighbor.last_error, neighbor.refusal = "It was removed from the roster.", ""

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
        neighbor = self.neighbors[peer]
        if neighbor.presence is Presence.REMOVED:
            return
        neighbor.confirmed = confirmed
        if incarnation == neighbor.incarnation:
            order = max(neighbor._order, order)
        neighbor._order = order
        neighbor.presence, neighbor.live_from = Presence.LIVE, live_from
        neighbor.incarnation = incarnation
        neighbor.round = neighbor.reached = round
        neighbor.last_heard = neighbor.last_work = neighbor.last_excuse = now
        neighbor.waiting_for = frozenset()
        neighbor.last_error = neighbor.refusal = ""
        neighbor._unnamed = 0

    def restarted(self, peer: Peer, incarnation: int) -> None:
        """Another process of the neighbor speaks: the old edge is over, a new one can be agreed
        on.
        """
        neighbor = self.neighbors[peer]
        if neighbor.presence is Presence.REMOVED:
            return
        if neighbor.presence is Presence.LIVE:
            self.lose(peer, "It was restarted.")
        neighbor.presence, neighbor.incarnation = Presence.UNKNOWN, incarnation
        neighbor._lost_at, neighbor._order = None, 0
        neighbor.round = neighbor.reached = -1

    def start_waiting(self, peers: Iterable[Peer], now: float) -> None:
        """From now on these are waited for: what they did before does not count against them."""
        for peer in peers:
            neighbor = self.neighbors[peer]
            neighbor.last_work = neighbor.last_excuse = max(neighbor.last_excuse, now)

    def moved(self, peer: Peer, now: float) -> None:
        """Bytes from or to the neighbor moved."""
        neighbor = self.neighbors[peer]
        neighbor.last_heard = neighbor.last_work = neighbor.last_excuse = now
        neighbor.confirmed = True

    def entered(self, peer: Peer, round: int, now: float) -> None:
        """A transfer of that round came from the neighbor."""
        neighbor = self.neighbors[peer]
        neighbor.reached = max(neighbor.reached, round)
        neighbor.shown = (round, now)

    def most_have_reached(self, now: float, *, quickest: float | None, heartbeats: bool) -> int:
        """The latest round that a strict majority of all neighbors, and two at least, claim to be
        at; -1 if none. So one neighbor alone moves this node nowhere, whatever it says.

        A claim is the round from which its edge is used, with `heartbeats` also the one after that
        which it is in. It counts as far as it is plausible: rounds that can have passed since its
        last transfer, none of them FASTER times as quick as `quickest` (seconds; None: nothing is
        known of how long rounds take).
        """
        claims = []
        for neighbor in self.neighbors.values():
            if neighbor.presence is not Presence.LIVE or not neighbor.confirmed:
                continue
            claim = (
                max(neighbor.live_from, neighbor.reached + 1) if heartbeats else neighbor.live_from
            )
            if neighbor.shown is not None and quickest:
                since_round, since = neighbor.shown
                claim = min(claim, since_round + 2 + int((now - since) * FASTER / quickest))
            claims.append(claim)
        needed = majority(len(self.neighbors))
        return sorted(claims)[-needed] if len(claims) >= needed else -1

    def heartbeat(self, peer: Peer, heartbeat: Heartbeat, now: float) -> None:
        """A sign of life. Heartbeats of an earlier process, and overtaken ones, are ignored; those
        of a later one end the edge.
        """
        neighbor = self.neighbors[peer]
        if heartbeat.incarnation < neighbor.incarnation:
            return
        if heartbeat.incarnation > neighbor.incarnation:
            if neighbor.presence is Presence.LIVE:
                self.lose(peer, "It was restarted.")
            neighbor._lost_at = None
            return
        if heartbeat.order <= neighbor._order:
            return
        neighbor._order = heartbeat.order
        neighbor.last_heard = now
        neighbor.reached = max(neighbor.reached, heartbeat.round)
        if (heartbeat.progress, heartbeat.round, heartbeat.phase) != (
            neighbor._progress,
            neighbor.round,
            neighbor.phase,
        ):
            neighbor.last_work = neighbor.last_excuse = now
        if heartbeat.gathers or (
            heartbeat.waiting_for
            and self.me not in heartbeat.waiting_for
            and heartbeat.idle < PATIENCE * self.deadline
        ):
            neighbor.last_excuse = now
        neighbor._idle_since = now if heartbeat.gathers else now - heartbeat.idle
        neighbor._progress, neighbor.round, neighbor.phase = (
            heartbeat.progress,
            heartbeat.round,
            heartbeat.phase,
        )
        neighbor.waiting_for = heartbeat.waiting_for
        neighbor._unnamed = (
            0 if heartbeat.names_me or not neighbor.confirmed else neighbor._unnamed + 1
        )
        neighbor.confirmed |= heartbeat.names_me
        if neighbor.presence is Presence.LIVE and neighbor._unnamed >= MISSED_BEATS:
            self.lose(peer, "It no longer uses this edge.")

    def idle(self, peer: Peer, now: float) -> float:
        """Seconds since the last progress of this neighbor, or of anybody down the chain it waits
        for.
        """
        neighbor = self.neighbors[peer]
        return now - max(neighbor.last_work, neighbor._idle_since)

    def overdue(self, peer: Peer, now: float) -> bool:
        """No excuse for a whole deadline."""
        return now - self.neighbors[peer].last_excuse > self.deadline

    def until(self, peer: Peer) -> float:
        """When the neighbor will be lost unless it shows progress."""
        return self.neighbors[peer].last_excuse + self.deadline

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        """The edge is lost until a new handshake; `idle`: and until the neighbor moves."""
        neighbor = self.neighbors[peer]
        if neighbor.presence in (Presence.LIVE, Presence.UNKNOWN):
            neighbor.presence, neighbor.last_error = Presence.LOST, why
            neighbor._lost_at = neighbor._progress if idle else None

    def bar(self, peer: Peer, until: float) -> None:
        """It is not taken back before, be it another process by then."""
        neighbor = self.neighbors[peer]
        neighbor.barred_until = max(neighbor.barred_until, until)

    def kept_off(self, peer: Peer, incarnation: int, now: float) -> str:
        """Why no edge is agreed on with this process of it yet, in a sentence; empty if nothing
        speaks against it.
        """
        neighbor = self.neighbors[peer]
        if (
            neighbor.presence is Presence.LOST
            and incarnation == neighbor.incarnation
            and neighbor._lost_at == neighbor._progress
        ):
            return "Nothing has moved at the caller since the edge was lost."
        if neighbor.barred_until == inf:
            return "The caller told its neighbors different things."
        if now < neighbor.barred_until:
            return (
                "The caller held this node up too often; it is taken back in "
                f"{neighbor.barred_until - now:.0f} s."
            )
        return ""

    def leave(self, peer: Peer, *, incarnation: int, finished: bool) -> None:
        """The neighbor said goodbye."""
        neighbor = self.neighbors[peer]
        if incarnation >= neighbor.incarnation and neighbor.presence is not Presence.REMOVED:
            neighbor.presence = Presence.FINISHED if finished else Presence.LEFT
            neighbor.last_error = "" if finished else "It left."
