"""One phase and role of a round: what comes from each neighbor, and what is sent to each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from node.rounds.buffers import FrameQueue, ReceiveBuffer, SendBuffer, parts_of, shape_of
from peer.message import Layout, Payload, Peer, Replies
from peer.session.interfaces import DiscardSink, Sink
from peer.session.interfaces import Payload as Outgoing
from peer.session.mailbox import Key, Role
from peer.session.transfers import Transfers

Kept: TypeAlias = dict[tuple[int, Role, Peer], tuple[int, ReceiveBuffer]]
"""(phase, role, neighbor) -> its newest payload and the round it is of. Read in async mode only."""


WINDOW = 8
"""Frames (of 1 MiB) of all neighbors together that may wait to be folded in a streaming mix: they
hide jitter, without taking more memory at a higher degree. Each neighbor has one at least."""


class Exchange:
    """It is the session's `Inbox` for its key. `form` gives the shape of payloads: one vector, or a
    tuple of them; `most` their largest norm, None where they may be anything."""

    def __init__(
        self,
        transfers: Transfers,
        key: Key,
        *,
        kind: str,
        layout: Layout,
        form: Payload[Tensor],
        said: SendBuffer | None,
        most: float | None,
        streaming: bool,
        kept: Kept,
        staleness: int | None,
    ) -> None:
        self.transfers, self.key, self.layout, self.said = transfers, key, layout, said
        self.as_tuple = isinstance(form, tuple) and key.role is not Role.ANSWER
        self.parts = parts_of(form) if self.as_tuple else 1
        self.shape = shape_of(kind, layout, self.parts)
        self.their_heard: dict[Peer, frozenset[Peer]] = {}
        """Whom each neighbor says it heard in the phase before; known from its header on."""
        self.served: set[Peer] = set()
        self.streams: dict[Peer, FrameQueue] = {}
        self.on_arrival: Callable[[Peer, int, Exchange], None] = lambda peer, round, here: None
        """Called with the sender's round, and this exchange, when a neighbor's payload is complete.
        It should not know the exchange by itself: that is a ring, which keeps payloads until it is
        collected."""
        self._slots: dict[Peer, ReceiveBuffer | None] = {}
        self._window = WINDOW
        self.most, self._streaming, self._kept, self._staleness = most, streaming, kept, staleness

    # what is sent

    async def serve(self, peer: Peer, heard: frozenset[Peer]) -> bool:
        """Sends what this node says; False when the neighbor refuses it for good."""
        assert self.said is not None
        if not await self.deliver(peer, self.said, heard=heard):
            return False
        self.served.add(peer)
        self.transfers.table.changed.notify()
        return True

    async def deliver(
        self,
        peer: Peer,
        payload: Outgoing,
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

    def open(self, peers: Collection[Peer]) -> None:
        self._window = max(1, WINDOW // max(1, len(peers)))
        self.transfers.open(self.key, self.shape, peers, self)

    def close(self) -> None:
        self.transfers.shut(self.key)
        self.ignore(self.streams)  # who began too late holds up nobody

    def sink(self, peer: Peer, round: int, heard: frozenset[Peer], withheld: bool) -> Sink:
        """Where an admitted transfer of this neighbor goes."""
        self.their_heard[peer] = heard
        if withheld:
            self._slots[peer] = None
            return DiscardSink()
        if self._streaming:
            self.transfers.table.changed.notify()
            assert self.most is not None
            stream = FrameQueue(
                peer, self.layout, self.transfers.table.changed, self._window, most=self.most
            )
            return self.streams.setdefault(peer, stream)

        def arrived() -> None:
            if self._staleness is None and self.transfers.mailbox.round != self.key.round:
                return  # its round is over: nothing is answered or used any more
            self._slots[peer] = slot
            self._keep(peer, round, slot)
            self.on_arrival(peer, round, self)

        slot = ReceiveBuffer(self.layout, self.parts, arrived, most=self.most)
        return slot

    def came(self, peer: Peer) -> bool:
        """Something was heard: the payload, that it is withheld, or (streaming) the header."""
        return peer in self._slots or peer in self.streams

    def done(self, peer: Peer) -> bool:
        """Heard and served."""
        return self.came(peer) and peer in self.served

    def frame_came(self, peer: Peer) -> bool:
        """A frame of the stream is there to be folded."""
        return self.streams[peer].waiting

    def ignore(self, peers: Iterable[Peer]) -> None:
        """These streams are not folded (any more)."""
        for peer in peers:
            self.streams[peer].ignore()

    def heard(self) -> frozenset[Peer]:
        """Everybody who was heard, withheld answers included; in async mode recently enough."""
        return (
            frozenset(self._slots)
            | frozenset(self.streams)
            | frozenset(filter(self._older, self._neighbors()))
        )

    def received(self, neighbors: Iterable[Peer]) -> Replies[Any]:
        """The payloads that came."""
        got = {peer for peer in self.heard() if self._slot(peer) is not None}
        return Replies(((peer, self.take(peer)) for peer in got), frozenset(neighbors) - got)

    def take(self, peer: Peer) -> Any:
        """The neighbor's payload: one vector, or a tuple of them."""
        slot = self._slot(peer)
        assert slot is not None, f"nothing came from {peer}"
        return slot.tensors(as_tuple=self.as_tuple)

    def norms(self, peers: Iterable[Peer]) -> dict[Peer, float]:
        """How long the neighbors' payloads are, as far as they came and were measured."""
        sizes = {peer: (self.streams.get(peer) or self._slot(peer)) for peer in peers}
        return {
            peer: it.size.norm
            for peer, it in sizes.items()
            if it is not None and it.size is not None
        }

    def own(self) -> Any:
        """This node's payload as the neighbors get it, in the same form."""
        assert self.said is not None
        full = self.said.flat.float()
        return full.chunk(self.parts) if self.as_tuple else full

    def _keep(self, peer: Peer, round: int, slot: ReceiveBuffer) -> None:
        """async: the newest payload serves later rounds too."""
        place = (self.key.phase, self.key.role, peer)
        if self._staleness is not None and round >= self._kept.get(place, (round, slot))[0]:
            self._kept[place] = (round, slot)

    def _slot(self, peer: Peer) -> ReceiveBuffer | None:
        return self._slots[peer] if peer in self._slots else self._older(peer)

    def _older(self, peer: Peer) -> ReceiveBuffer | None:
        if self._staleness is None:
            return None
        round, slot = self._kept.get((self.key.phase, self.key.role, peer), (None, None))
        return slot if round is not None and self.key.round - round <= self._staleness else None

    def _neighbors(self) -> Iterable[Peer]:
        return {
            peer
            for phase, role, peer in self._kept
            if (phase, role) == (self.key.phase, self.key.role)
        }
