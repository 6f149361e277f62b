"""One phase of a round and one role in it: what comes from each neighbor, and what is sent to each.

A Say or a Mix is one phase; an Ask is two, its questions and its answers (`questions.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from node.rounds.buffers import FrameQueue, ReceiveBuffer, SendBuffer, parts_of, shape_of
from peer.message import Layout, Payload, Peer, Replies, WholePayload
from peer.session.interfaces import DiscardSink, FrameSource, Incoming, Key, Role, Sink
from peer.session.transfers import Transfers

WINDOW = 8
"""Frames (of 1 MiB) of all neighbors together that may wait to be folded in a streaming mix: they
hide jitter, without taking more memory at a higher degree. Each neighbor has one at least."""


class Latest:
    """async: the newest payload of each neighbor in each phase, which serves later rounds too."""

    def __init__(self, staleness: int) -> None:
        """`staleness`: τ, how many rounds old a payload may be."""
        self._staleness = staleness
        self._newest: dict[tuple[int, Role, Peer], tuple[int, ReceiveBuffer]] = {}

    def keep(self, key: Key, peer: Peer, round: int, buffer: ReceiveBuffer) -> None:
        """A payload of that round came, unless a newer one did."""
        place = (key.phase, key.role, peer)
        if place not in self._newest or round >= self._newest[place][0]:
            self._newest[place] = (round, buffer)

    def get(self, key: Key, peer: Peer) -> ReceiveBuffer | None:
        """The neighbor's newest payload, if it is new enough for this round."""
        round, buffer = self._newest.get((key.phase, key.role, peer), (None, None))
        return buffer if round is not None and key.round - round <= self._staleness else None

    def peers(self, key: Key) -> frozenset[Peer]:
        """Of whom there is a payload new enough."""
        here = (key.phase, key.role)
        known = {peer for *place, peer in self._newest if tuple(place) == here}
        return frozenset(peer for peer in known if self.get(key, peer) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the messages of a phase look like, and how large those that come may be."""

    kind: str
    layout: Layout
    tensors: Payload[Tensor]
    """Gives the shape: one vector of the layout, or a tuple of them."""
    most: float | None
    """Largest norm of a payload that comes; None: it may be anything."""

    @property
    def parts(self) -> int:
        return parts_of(self.tensors)

    @property
    def as_tuple(self) -> bool:
        return isinstance(self.tensors, tuple)


class Phase:
    """It is the `peer.session.interfaces.OpenPhase` of its key."""

    def __init__(
        self,
        transfers: Transfers,
        key: Key,
        form: Form,
        outgoing: SendBuffer | None = None,
        latest: Latest | None = None,
    ) -> None:
        """`outgoing`: what this node says to all alike; None for answers. `latest`: in async
        mode."""
        self.transfers, self.key, self.form = transfers, key, form
        self.table = transfers.table
        self.outgoing, self.latest = outgoing, latest
        self.shape = shape_of(form.kind, form.layout, form.parts)
        self.expected: frozenset[Peer] = frozenset()
        """Neighbors whose messages are let in."""
        self.opened = 0.0
        """When, in seconds of the event loop's clock."""
        self.served: set[Peer] = set()
        """Neighbors that have taken what this node says."""
        self.heard_by: dict[Peer, frozenset[Peer]] = {}
        """Whom each neighbor says it heard in the phase before; known from its header on."""
        self._received: dict[Peer, ReceiveBuffer | None] = {}
        """None: the answer is withheld."""

    # life

    def open(self, peers: Collection[Peer]) -> None:
        """From now on the messages of these neighbors are let in."""
        self.expected = frozenset(peers)
        self.opened = self.table.now
        self.transfers.open(self)

    def close(self) -> None:
        """What still comes is refused."""
        self.transfers.close(self)

    # what is sent

    async def serve(self, peer: Peer, heard: frozenset[Peer]) -> bool:
        """Sends a neighbor what this node says to all; False when it refuses for good. `heard`:
        whom this node heard in the phase before."""
        assert self.outgoing is not None
        if not await self.deliver(peer, self.outgoing, heard=heard):
            return False
        self.served.add(peer)
        self.table.changed.notify()
        return True

    async def deliver(
        self,
        peer: Peer,
        payload: FrameSource,
        *,
        round: int | None = None,
        heard: frozenset[Peer] = frozenset(),
        withheld: bool = False,
    ) -> bool:
        """`round`: of the question that is answered, if it is not this round."""
        key = self.key if round is None else replace(self.key, round=round)
        return await self.transfers.deliver(
            peer, key, self.shape, payload, heard=heard, withheld=withheld
        )

    # what comes

    def receive(self, peer: Peer, message: Incoming) -> Sink:
        """Where the payload of this neighbor goes."""
        self.heard_by[peer] = message.heard
        if message.withheld:
            return DiscardSink()
        return ReceiveBuffer(self.form.layout, self.form.parts, most=self.form.most)

    def complete(self, peer: Peer, message: Incoming, sink: Sink) -> None:
        """The neighbor's payload came, or the news that there is none. After the end of its round
        nothing is used any more."""
        if self.latest is None and self.transfers.round != self.key.round:
            return
        if not isinstance(sink, ReceiveBuffer):
            self._received[peer] = None
            return
        sink.note = message.note
        self._received[peer] = sink
        if self.latest is not None:
            self.latest.keep(self.key, peer, message.round, sink)

    def came(self, peer: Peer) -> bool:
        """Something was heard: the payload, or that it is withheld."""
        return peer in self._received

    def done(self, peer: Peer) -> bool:
        """Heard and served."""
        return self.came(peer) and peer in self.served

    def heard(self) -> frozenset[Peer]:
        """Everybody who was heard, withheld answers included; in async mode recently enough."""
        older = frozenset[Peer]() if self.latest is None else self.latest.peers(self.key)
        return frozenset(self._received) | older

    @property
    def notes(self) -> dict[Peer, bytes]:
        """What neighbors wrote on the messages that were heard, of those who did."""
        buffers = {peer: self._buffer(peer) for peer in self.heard()}
        return {peer: it.note for peer, it in sorted(buffers.items()) if it is not None and it.note}

    def replies(
        self, neighbors: Iterable[Peer], notes: Mapping[Peer, bytes] | None = None
    ) -> Replies[WholePayload[Tensor]]:
        """The payloads that came. `notes`: of the questions, if these are answers."""
        there = {peer for peer in self.heard() if self._buffer(peer) is not None}
        payloads = ((peer, self.take(peer)) for peer in there)
        return Replies(
            payloads, frozenset(neighbors) - there, self.notes if notes is None else notes
        )

    def take(self, peer: Peer) -> WholePayload[Tensor]:
        """The neighbor's payload: one vector, or a tuple of them."""
        buffer = self._buffer(peer)
        assert buffer is not None, f"nothing came from {peer}"
        return buffer.tensors(as_tuple=self.form.as_tuple)

    def norms(self, peers: Iterable[Peer]) -> dict[Peer, float]:
        """How long the neighbors' payloads are, as far as they came and were measured."""
        buffers = {peer: self._buffer(peer) for peer in peers}
        return {
            peer: buffer.size.norm
            for peer, buffer in buffers.items()
            if buffer is not None and buffer.size is not None
        }

    def own(self) -> WholePayload[Tensor]:
        """This node's payload as the neighbors get it, in the same form."""
        assert self.outgoing is not None
        full = self.outgoing.flat.float()
        return full.chunk(self.form.parts) if self.form.as_tuple else full

    def _buffer(self, peer: Peer) -> ReceiveBuffer | None:
        if peer in self._received or self.latest is None:
            return self._received.get(peer)
        return self.latest.get(self.key, peer)


class StreamingPhase(Phase):
    """A Mix whose frames are folded as they come: a bounded number of them wait, no payload is
    kept."""

    def __init__(self, transfers: Transfers, key: Key, form: Form, outgoing: SendBuffer) -> None:
        super().__init__(transfers, key, form, outgoing)
        self.streams: dict[Peer, FrameQueue] = {}
        self._window = WINDOW
        """Frames of each neighbor that may wait."""

    def open(self, peers: Collection[Peer]) -> None:
        self._window = max(1, WINDOW // max(1, len(peers)))
        super().open(peers)

    def close(self) -> None:
        """Who began too late holds up nobody."""
        super().close()
        self.ignore(self.streams)

    def receive(self, peer: Peer, message: Incoming) -> Sink:
        assert self.form.most is not None
        self.heard_by[peer] = message.heard
        changed = self.table.changed
        changed.notify()
        layout, most = self.form.layout, self.form.most
        stream = FrameQueue(peer, layout, changed, self._window, most=most)
        return self.streams.setdefault(peer, stream)

    def complete(self, peer: Peer, message: Incoming, sink: Sink) -> None:
        """Its frames were taken one by one."""

    def came(self, peer: Peer) -> bool:
        """The header was heard."""
        return peer in self.streams

    def heard(self) -> frozenset[Peer]:
        return frozenset(self.streams)

    def norms(self, peers: Iterable[Peer]) -> dict[Peer, float]:
        return {peer: self.streams[peer].size.norm for peer in peers if peer in self.streams}

    def frame_came(self, peer: Peer) -> bool:
        """A frame of the stream is there to be folded."""
        return self.streams[peer].waiting

    def ignore(self, peers: Iterable[Peer]) -> None:
        """These streams are not folded (any more)."""
        for peer in peers:
            self.streams[peer].ignore()
