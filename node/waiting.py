"""Waiting for neighbours: how long, for whom, and when one is given up. The policies of `[sync]`.

round    every live neighbour, each with a deadline that measures its progress
quorum   a share of them; who is ahead or behind is left out of a phase, its edge is kept
async    nobody
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from math import ceil

from node.config import SyncSection
from peer.mailbox import Key
from peer.message import Peer
from peer.session import Session

FAR = 20
"""Rounds: neighbours in one run differ by one round; where they differ by more, a partition has healed."""


class Watcher:
    """What the driver tells whoever watches. Every method does nothing; the daemon overrides them."""

    def phase(self, t: int, phase: int, kind: str, seconds: float) -> None: ...

    def waited(self, peer: Peer, seconds: float) -> None: ...

    def lost(self, t: int, phase: int, peer: Peer, why: str) -> None: ...

    def mixed(self, t: int, weight: Mapping[Peer, float], distance: float) -> None: ...

    def dropped(self, t: int, phase: int, peers: frozenset[Peer], after_header: bool) -> None: ...

    def outlier(self, t: int, kind: str, peer: Peer, times: float) -> None: ...

    def withheld(self, t: int, recipient: Peer, why: str) -> None: ...

    def round(self, t: int, seconds: float) -> None: ...

    def skipped(self, first: int, last: int) -> None: ...


class Waiting:
    """One node's waiting. `begin` a round, `enter` each phase, then wait `until` its neighbours are done."""

    def __init__(self, session: Session, sync: SyncSection, watcher: Watcher) -> None:
        self.session, self.membership, self.sync, self.watcher = session, session.membership, sync, watcher
        self.t = self.phase = 0
        self.live: frozenset[Peer] = frozenset()
        """Neighbours whose edge was in use when the round began."""
        self._left_out: frozenset[Peer] = frozenset()
        self._told: frozenset[Peer] = frozenset()
        self._waited: dict[Peer, float] = defaultdict(float)
        """Seconds in this phase, by whom they were waited for."""
        self._blamed: dict[Peer, float] = defaultdict(float)
        """Those of them in which it did not say that it waits for others."""

    def begin(self, t: int) -> None:
        self.t, self.live, self._told = t, self.membership.live(t), frozenset()

    def enter(self, phase: int) -> None:
        self.phase, self._left_out = phase, frozenset()
        self._waited.clear()
        self._blamed.clear()

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
        """Until every peer is done, or lost; by the policy of `[sync]` until enough are, or not at all.

        `came`: what the peer owes is here (it may still have to take what this node owes it). `excused`: it is this
        node's own work that keeps the peer from being done.
        """
        if self.sync.mode == "async":
            return
        enough = ceil(self.sync.quorum * len(peers)) if self.sync.mode == "quorum" else len(peers)
        began, position = self.session.now, self.session.position
        self.membership.start_waiting(peers, began)
        waiting = peers
        while True:
            still = self._still(peers, done, came)
            for peer in sorted(waiting - still):
                self.watcher.waited(peer, self.session.now - began)
                if peer not in self.membership.live(self.t) and not came(peer):
                    self._tell(peer, self.membership.neighbours[peer].trouble or "It is gone.")
            waiting = still
            if not waiting or len(peers) - len(waiting) >= enough:
                break
            position.waiting_for = debtors = frozenset(peer for peer in waiting if not excused(peer))
            self.membership.start_waiting(waiting - debtors, self.session.now)
            for peer in sorted(debtors):
                self._judge(peer, began)
            blamed = [peer for peer in debtors if not self._waits_for_others(peer)]
            dozed = await self._doze(waiting)
            for counted, whom in ((self._waited, debtors), (self._blamed, blamed)):
                for peer in whom:
                    counted[peer] += dozed
        position.waiting_for = frozenset()

    def _still(
        self, peers: frozenset[Peer], done: Callable[[Peer], bool], came: Callable[[Peer], bool]
    ) -> frozenset[Peer]:
        """Whom to go on waiting for. Of a neighbour that is in a later round nothing of this one will come."""
        still = frozenset(peer for peer in peers & self.membership.live(self.t) if not done(peer))
        for peer in sorted(still):
            if self.membership.neighbours[peer].round > self.t and not came(peer):
                self._leave_out(peer, "It went on without this node.")
        return still - self._left_out

    def _judge(self, peer: Peer, began: float) -> None:
        """Is it to be given up? `began`: when this waiting did."""
        if self.membership.overdue(peer, self.session.now):
            self.lose(peer, f"It made no progress for {self.membership.deadline:g} s.", idle=True)
        elif max(self._blamed[peer], self._waited[peer] / 2) > self.sync.patience_s:
            self.lose(peer, f"It was waited for {self._waited[peer]:.0f} s.", idle=True)
        elif self.membership.behind(peer, self.t - FAR, began):
            self.lose(peer, "It is far behind.")

    def _waits_for_others(self, peer: Peer) -> bool:
        return bool(self.membership.neighbours[peer].waiting_for - {self.membership.me})

    async def _doze(self, waiting: frozenset[Peer]) -> float:
        """Until something changes or the next deadline; the seconds that took. If this node itself stood still
        meanwhile, what the others said is not read yet, they get their time anew, and it is nobody's."""
        since = self.session.now
        due = max(since + 0.001, min(self.membership.until(peer) for peer in waiting) + 0.001)
        await self.session.changed.wait(due - since)
        if self.session.now > due + self.membership.deadline / 4:
            self.membership.start_waiting(waiting, self.session.now)
            return 0.0
        return self.session.now - since

    def refused_by(self, peer: Peer, key: Key) -> None:
        """The neighbour refused what was sent in that round and phase, which may be over."""
        if (key.round, key.phase) == (self.t, self.phase):
            self._leave_out(peer, "It refused what was sent.")

    def _leave_out(self, peer: Peer, why: str) -> None:
        """round: the edge is lost. Otherwise a neighbour may be ahead; it is left out of this phase only."""
        self._left_out |= {peer}
        if self.sync.mode == "round":
            self.lose(peer, why)
        self.session.changed.notify()

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        if peer in self.membership.live(self.t):
            self.session.lose(peer, why, idle=idle)
            self._tell(peer, why)

    def _tell(self, peer: Peer, why: str) -> None:
        """Once a round."""
        if peer not in self._told:
            self._told |= {peer}
            self.watcher.lost(self.t, self.phase, peer, why)
