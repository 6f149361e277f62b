"""Heartbeats: what this node tells its neighbors of itself about once a second, and what it learns
from theirs.

What they tell is coarse on purpose: a count of work would tell the size of a secret batch.
"""

from __future__ import annotations

from peer import codec
from peer.membership import Heartbeat
from peer.message import Peer
from peer.session.interfaces import Witness
from peer.session.peers import LocalProgress, PeerTable
from peer.v1 import peer_pb2 as pb

TICK = 0.25
"""Seconds: the resolution at which others learn of this node's progress."""


class Heartbeats:
    """Makes this node's heartbeats and reads those of its neighbors."""

    def __init__(self, table: PeerTable, progress: LocalProgress, witness: Witness) -> None:
        self.table, self.progress, self.witness = table, progress, witness
        self._work = 0
        """Work done when the latest tick began."""
        self._ticked_at = table.now
        self._ticks = 0

    def make(self, to: Peer) -> pb.Beat:
        """What this node says of itself now."""
        table, progress = self.table, self.progress
        return pb.Beat(
            run=table.parameters.run,
            sender=table.ids[table.me],
            incarnation=table.incarnation,
            round=progress.round,
            phase=progress.phase,
            progress=self._count_ticks(),
            waiting_for=[table.ids[peer] for peer in sorted(progress.waiting_for)],
            live=[table.ids[peer] for peer in sorted(table.membership.present())],
            head=self.witness.current(),
            idle_ms=min(self._idle_ms(), 0xFFFFFFFF),
            order=table.next_order(),
            unreached=codec.printable(table.states[to].unreached),
        )

    def receive(self, peer: Peer, message: pb.Beat) -> None:
        """Takes in a neighbor's heartbeat."""
        table = self.table
        self.witness.observe(peer, message.head)
        neighbor = table.membership.neighbors[peer]
        before = neighbor.presence
        heartbeat = Heartbeat(
            incarnation=message.incarnation,
            order=message.order,
            round=message.round,
            phase=message.phase,
            progress=message.progress,
            waiting_for=table.known(message.waiting_for),
            idle=message.idle_ms / 1000,
            names_me=table.ids[table.me] in message.live,
        )
        table.membership.heartbeat(peer, heartbeat, table.now)
        table.note_unreached(peer, message.unreached)
        if neighbor.presence is not before:
            table.observer.presence(peer, False)
            table.states[peer].wake.notify()
        table.changed.notify()

    def _count_ticks(self) -> int:
        """Grows by one in every TICK in which anything moved, however much did."""
        table = self.table
        work = table.moved + self.progress.work.progress
        if work != self._work and table.now - self._ticked_at >= TICK:
            self._work = work
            self._ticked_at = table.now
            self._ticks += 1
        return self._ticks

    def _idle_ms(self) -> int:
        """Milliseconds, in whole TICKs, since there was progress here or anywhere down the chain of
        those this node waits for.
        """
        table = self.table
        idle = [table.membership.idle(peer, table.now) for peer in self.progress.waiting_for]
        ticks = int(min([table.now - self._ticked_at, *idle]) / TICK)
        return int(1000 * TICK * ticks)
