"""Waiting for neighbors: how long, for whom, and when one is given up. The policies of `[sync]`.

round    every live neighbor, each with a deadline that measures its progress, and with patience
quorum   a share of them; a neighbor ahead or behind is left out of a phase, its edge is kept
async    nobody
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from math import ceil
from statistics import median

from node.config import SyncSection
from peer.message import Peer
from peer.session.interfaces import Key
from peer.session.peers import LocalProgress, PeerTable

FAR = 20
"""Rounds: neighbors in one run differ by one round; where they differ by more, a partition has
healed.
"""
PATIENCE_ROUNDS, PATIENCE_DEADLINES, PATIENCE_SECONDS = 30, 3, 900.0
"""Patience where none is configured: that many rounds, within that many deadlines and seconds."""
GIVEN_BACK = 0.1
"""Of the time in which a neighbor is on time, what is taken off that for which it was waited
for.
"""
REMEMBERED = 50
"""Rounds whose median is the pace."""


class RoundObserver:
    """What the driver tells whoever watches. Every method does nothing; the daemon overrides
    them.
    """

    def phase(self, t: int, phase: int, kind: str, seconds: float) -> None: ...

    def waited(self, peer: Peer, seconds: float) -> None: ...

    def lost(self, t: int, phase: int, peer: Peer, why: str) -> None: ...

    def mixed(self, t: int, weight: Mapping[Peer, float], distance: float) -> None: ...

    def dropped(self, t: int, phase: int, peers: frozenset[Peer], after_header: bool) -> None: ...

    def outlier(self, t: int, kind: str, peer: Peer, times: float) -> None: ...

    def withheld(self, t: int, recipient: Peer, why: str) -> None: ...

    def round(self, t: int, seconds: float) -> None: ...

    def skipped(self, first: int, last: int) -> None: ...


class Patience:
    """What each neighbor has cost, in seconds, and what it may still cost: a pure account, without
    a clock.

    Waiting for a neighbor costs nothing while the slower half of the others is waited for too, nor
    up to `slowest` times the pace: what a round takes this node and the faster half of its
    neighbors. What goes beyond is owed. A neighbor may owe half of what twice the patience leaves
    it: so it costs twice the patience in the whole run at most (and GIVEN_BACK of the time in which
    it was on time), however often it is lost and taken back.
    """

    def __init__(self, sync: SyncSection) -> None:
        self.sync = sync
        self.owed: dict[Peer, float] = defaultdict(float)
        self._losses: Counter[Peer] = Counter()
        self._round: dict[Peer, float] = defaultdict(float)
        """Seconds of this round in which it was waited for, beyond the faster half."""
        self._charged_seconds: dict[Peer, float] = defaultdict(float)
        """Those of them in which it did not say that it waits for others."""
        self._beyond = 0.0
        """Seconds of this round in which anybody was."""
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    def wait(self, seconds: float, pending: frozenset[Peer], blamed: frozenset[Peer]) -> None:
        """The faster half is done, and these were waited for."""
        self._beyond += seconds
        for counted, peers in ((self._round, pending), (self._charged_seconds, blamed)):
            for peer in peers:
                counted[peer] += seconds

    def pace(self, so_far: float) -> float:
        """Seconds of a round without those who are late: the last or the median one, as it includes
        evaluations or not. `so_far`: what this round has taken, which has to do before the first is
        over."""
        return max(median(self._paces), self._paces[-1]) if self._paces else so_far - self._beyond

    def spent(self, peer: Peer, so_far: float) -> float:
        """What it costs in this round."""
        waited = max(self._charged_seconds[peer], self._round[peer] / 2)
        return max(0.0, waited - self.sync.slowest * self.pace(so_far))

    def left(self, peer: Peer, so_far: float) -> float:
        """What it may cost in this round."""
        return (2 * self._most(so_far) - self.owed[peer]) / 2

    def lost(self, peer: Peer) -> float:
        """An edge was lost; the seconds until it is taken back: at once the first time, then after
        a deadline, twice that, … until it was on time for as long as makes up for what it owes."""
        self._losses[peer] += 1
        return (
            self.sync.deadline_s * 2.0 ** min(self._losses[peer] - 2, 32)
            if self._losses[peer] > 1
            else 0.0
        )

    def round(self, seconds: float, present: frozenset[Peer]) -> None:
        """A round of so many seconds is over; `present`: whose edges still stand."""
        for peer in sorted({*self._round, *self.owed, *self._losses}):
            spent = self.spent(peer, seconds)
            self.owed[peer] += spent
            if not spent and peer in present:
                self.owed[peer] -= GIVEN_BACK * seconds
            if self.owed[peer] <= 0 and peer in present:
                del self.owed[peer], self._losses[peer]
        self._paces.append(max(0.0, seconds - self._beyond))
        self._round.clear()
        self._charged_seconds.clear()
        self._beyond = 0.0

    def _most(self, so_far: float) -> float:
        if self.sync.patience_s is not None:
            return self.sync.patience_s
        least = PATIENCE_DEADLINES * self.sync.deadline_s
        return min(max(PATIENCE_ROUNDS * self.pace(so_far), least), max(PATIENCE_SECONDS, least))


class Waiting:
    """One node's waiting. `begin` a round, `enter` each phase, then wait `until` its neighbors are
    done; `end` it.
    """

    def __init__(
        self,
        table: PeerTable,
        progress: LocalProgress,
        sync: SyncSection,
        watcher: RoundObserver,
    ) -> None:
        self.table, self.membership, self.progress = table, table.membership, progress
        self.sync, self.watcher = sync, watcher
        self.patience = Patience(sync)
        self.t = self.phase = 0
        self.live: frozenset[Peer] = frozenset()
        """Neighbors whose edge was in use when the round began."""
        self._began = 0.0
        self._left_out: frozenset[Peer] = frozenset()
        self._reported: frozenset[Peer] = frozenset()

    def begin(self, t: int) -> None:
        self.t, self.live, self._reported, self._began = (
            t,
            self.membership.live(t),
            frozenset(),
            self.table.now,
        )

    def enter(self, phase: int) -> None:
        self.phase, self._left_out = phase, frozenset()

    def end(self) -> float:
        """The round is over; the seconds it took."""
        self.patience.round(self._so_far, self.present)
        return self._so_far

    @property
    def _so_far(self) -> float:
        return self.table.now - self._began

    @property
    def present(self) -> frozenset[Peer]:
        """Live when the round began, and still."""
        return self.live & self.membership.live(self.t)

    async def until(
        self,
        peers: frozenset[Peer],
        done: Callable[[Peer], bool],
        came: Callable[[Peer], bool],
        excused: Callable[[Peer], bool] = lambda peer: False,
    ) -> None:
        """Until every peer is done, or lost; by the policy of `[sync]` until enough are, or not at
        all.

        `came`: what the peer owes is here (it may still have to take what this node owes it).
        `excused`: it is this node's own work that keeps the peer from being done.
        """
        if self.sync.mode == "async":
            return
        enough = ceil(self.sync.quorum * len(peers)) if self.sync.mode == "quorum" else len(peers)
        began = self.table.now
        self.membership.start_waiting(peers, began)
        waiting = peers
        while True:
            still = self._still(peers, done, came)
            for peer in sorted(waiting - still):
                self.watcher.waited(peer, self.table.now - began)
                if peer not in self.membership.live(self.t) and not came(peer):
                    self._report(peer, self.membership.neighbors[peer].trouble or "It is gone.")
            waiting = still
            if not waiting or len(peers) - len(waiting) >= enough:
                break
            self.progress.waiting_for = pending = frozenset(
                peer for peer in waiting if not excused(peer)
            )
            self.membership.start_waiting(waiting - pending, self.table.now)
            for peer in sorted(pending):
                self._check_deadline(peer)
            half = len(peers) - len(waiting) >= len(peers) // 2
            blamed = frozenset(peer for peer in pending if not self._waits_for_others(peer))
            seconds = await self._wait_for_change(waiting)
            if half:
                self.patience.wait(seconds, pending, blamed)
        self.progress.waiting_for = frozenset()

    def _still(
        self, peers: frozenset[Peer], done: Callable[[Peer], bool], came: Callable[[Peer], bool]
    ) -> frozenset[Peer]:
        """Whom to go on waiting for. Of a neighbor that is in a later round nothing of this one
        will come.
        """
        still = frozenset(peer for peer in peers & self.membership.live(self.t) if not done(peer))
        for peer in sorted(still):
            if self.membership.neighbors[peer].round > self.t and not came(peer):
                self._leave_out(peer, "It went on without this node.")
        return still - self._left_out

    def _check_deadline(self, peer: Peer) -> None:
        """Is it to be given up?"""
        spent = self.patience.spent(peer, self._so_far)
        if self.membership.overdue(peer, self.table.now):
            self.lose(peer, f"It made no progress for {self.membership.deadline:g} s.", idle=True)
        elif spent > self.patience.left(peer, self._so_far):
            self.lose(
                peer,
                f"It held this node up for {spent:.0f} s: see sync.slowest, sync.patience_s.",
                idle=True,
            )

    def _waits_for_others(self, peer: Peer) -> bool:
        return bool(self.membership.neighbors[peer].waiting_for - {self.membership.me})

    async def _wait_for_change(self, waiting: frozenset[Peer]) -> float:
        """Waits until something changes or the next deadline; returns the seconds that took. If
        this process was itself stalled, restarts the neighbors' deadlines and charges the time to
        no one."""
        since = self.table.now
        due = max(since + 0.001, min(self.membership.until(peer) for peer in waiting) + 0.001)
        await self.table.changed.wait(due - since)
        if self.table.now > due + self.membership.deadline / 4:
            self.membership.start_waiting(waiting, self.table.now)
            return 0.0
        return self.table.now - since

    def refused_by(self, peer: Peer, key: Key) -> None:
        """The neighbor refused what was sent in that round and phase, which may be over."""
        if (key.round, key.phase) == (self.t, self.phase):
            self._leave_out(peer, "It refused what was sent.")

    def _leave_out(self, peer: Peer, why: str) -> None:
        """round: the edge is lost. Otherwise a neighbor may be ahead; it is left out of this phase
        only.
        """
        self._left_out |= {peer}
        if self.sync.mode == "round":
            self.lose(peer, why)
        self.table.changed.notify()

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        if peer in self.membership.live(self.t):
            self.table.lose(peer, why, idle=idle)
            self._report(peer, why)

    def _report(self, peer: Peer, why: str) -> None:
        """Once a round."""
        if peer not in self._reported:
            self._reported |= {peer}
            self.membership.bar(peer, self.table.now + self.patience.lost(peer))
            self.watcher.lost(self.t, self.phase, peer, why)
