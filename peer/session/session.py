"""Control plane of one node: it keeps contact with every neighbor and answers what they call.

Every neighbor is dialed, shaken hands with (`handshake.py`) and sent a heartbeat (`heartbeat.py`)
about once a second for as long as the session runs, so a neighbor that comes back is taken back.
Payloads are `transfers.py`'s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from peer import codec
from peer.errors import Malformed, RemoteError, Unreachable
from peer.identity.keys import Identity
from peer.membership import Presence
from peer.message import Peer
from peer.session.handshake import CALL_SECONDS, Handshakes
from peer.session.heartbeat import Heartbeats
from peer.session.interfaces import NO_WITNESS, NoWork, Witness, Work
from peer.session.mailbox import Mailbox
from peer.session.peers import LocalProgress, PeerTable
from peer.session.transfers import RETRY_FIRST, RETRY_MOST, Transfers
from peer.transport import Link, Method, Transport
from peer.v1 import peer_pb2 as pb

LEAVES, LEAVE_SECONDS = 3, 2.0
"""Attempts to say that all rounds are done, and each one's time: a neighbor that does not hear it
lingers.
"""


class Directory(Protocol):
    """Who tells where to dial: `peer.discovery.addresses.AddressBook`."""

    async def addresses(self, node_id: str) -> Sequence[str]:
        """Best first; while none is known, empty, or Unreachable with a sentence."""
        ...


def _no_exchange(question: pb.Peers) -> pb.Peers:
    raise Malformed("This node does not exchange addresses.")


class Session:
    """Create it on the event loop's thread; call `run` in a task of its own. It is the
    `peer.transport.Service` of its transport.
    """

    def __init__(
        self,
        table: PeerTable,
        *,
        identity: Identity | None,
        transport: Transport,
        mailbox: Mailbox,
        discovery: Directory,
        work: Work | None = None,
        witness: Witness = NO_WITNESS,
        heartbeat_seconds: float = 1.0,
        exchange: Callable[[pb.Peers], pb.Peers] = _no_exchange,
        version: str = "",
    ) -> None:
        """`identity` proves this node's key and signs what it says to all alike; None, or unused,
        where the transport proves nothing. `work`: what this node computes. `exchange` answers
        members that ask for addresses. `version`: of the software, for people.
        """
        proof = None if transport.insecure else identity
        self.table, self.transport, self.discovery = table, transport, discovery
        self.heartbeat_seconds, self.exchange = heartbeat_seconds, exchange
        self.progress = LocalProgress(mailbox, work or NoWork())
        self.handshakes = Handshakes(table, self.progress, witness, proof, version)
        self.heartbeats = Heartbeats(table, self.progress, witness)
        self.transfers = Transfers(table, mailbox, self._link, proof)
        self._tasks = asyncio.TaskGroup()

    # life

    async def run(self) -> None:
        """Keeps contact with every neighbor until cancelled. Once."""
        async with self._tasks:
            for peer in self.table.states:
                self._tasks.create_task(self._keep(peer), name=f"keep {peer}")

    def spawn(self, work: Coroutine[object, object, object]) -> None:
        """Runs something beside the session, as long as it runs."""
        self._tasks.create_task(work)

    async def goodbye(self, finished: bool) -> None:
        """Tells every neighbor; one that can't be reached will notice. When all rounds are done
        there is time to try again, and to state the ledger's last head, which neighbors keep.
        """
        self.table.stopping = not finished
        leave = pb.Leave(
            run=self.table.parameters.run,
            sender=self.table.ids[self.table.me],
            incarnation=self.table.incarnation,
            finished=finished,
        )

        async def tell(peer: Peer) -> None:
            if finished:
                with suppress(RemoteError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await self._send_heartbeat(peer)
            for _ in range(LEAVES if finished else 1):
                with suppress(RemoteError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):  # looking its name up may hang
                        await (await self._link(peer)).call("Leave", codec.encode(leave), 1.0)
                    return

        await asyncio.gather(*(tell(peer) for peer in self.table.states))

    async def close(self) -> None:
        """Closes all links."""
        for state in self.table.states.values():
            if state.link is not None:
                await state.link.close()
                state.link = None

    def remove(self, node_id: str) -> None:
        """The roster dropped a member: nothing it says counts, and nothing is said to it."""
        peer = self.table.names.pop(node_id, None)
        if peer in self.table.states:
            self.table.membership.remove(peer)
            self.table.states[peer].proven = False
            self.table.states[peer].wake.notify()
            self.table.observer.presence(peer, False)
        self.table.changed.notify()

    def adopt(self, version: int) -> None:
        """This node holds a newer roster: handshakes, which are due now, tell the neighbors so."""
        self.table.parameters = replace(self.table.parameters, roster=version)
        for state in self.table.states.values():
            state.proven = False
            state.wake.notify()

    # contact with one neighbor

    async def _keep(self, peer: Peer) -> None:
        state, pause = self.table.states[peer], RETRY_FIRST
        while self.table.membership.neighbors[peer].presence is not Presence.REMOVED:
            try:
                if self.handshakes.is_due(peer):
                    await self.handshakes.propose(peer, await self._link(peer))
                if not self.handshakes.is_due(peer):
                    await self._send_heartbeat(peer)
                pause = RETRY_FIRST
                state.tried.clear()
                self.table.note_reached(peer)
                await state.wake.wait(
                    RETRY_FIRST if self.handshakes.is_due(peer) else self.heartbeat_seconds
                )
            except RemoteError as error:
                self.table.note_trouble(peer, str(error), error.code)
                state.unreached = str(error) if isinstance(error, Unreachable) else ""
                self.table.observer.wire_error(peer, error.code)
                more = isinstance(error, Unreachable) and await self._redial(peer)
                pause = RETRY_FIRST if more else min(RETRY_MOST, pause * 2)
                await state.wake.wait(pause * random.uniform(0.5, 1.0))

    async def _send_heartbeat(self, peer: Peer) -> None:
        request = codec.encode(self.heartbeats.make(peer))
        sent = self.table.now
        link = await self._link(peer)
        reply = codec.decode(pb.Beat, await link.call("Beat", request, CALL_SECONDS))
        neighbor = self.table.membership.neighbors[peer]
        neighbor.rtt = self.table.now - sent
        self.table.observer.round_trip(peer, neighbor.rtt)
        if (reply.sender, reply.run) == (self.table.ids[peer], self.table.parameters.run):
            self.heartbeats.receive(peer, reply)

    async def _link(self, peer: Peer) -> Link:
        state = self.table.states[peer]
        if state.link is None:
            known = await self.discovery.addresses(state.id)
            if not known:
                raise Unreachable(f"No address is known for {peer}.")
            if state.link is None:  # nobody else made one meanwhile
                untried = (address for address in known if address not in state.tried)
                state.address = next(untried, known[0])
                state.link = self.transport.link(state.id, state.address)
        return state.link

    async def _redial(self, peer: Peer) -> bool:
        """After a failure: prove who is there again, at the next address if there is another. True:
        there is one that was not tried.
        """
        state = self.table.states[peer]
        state.proven = False
        state.tried.add(state.address)
        known: set[str] = set()
        with suppress(Unreachable):
            known = set(await self.discovery.addresses(state.id))
        if state.link is not None and known - {state.address}:
            link, state.link = state.link, None
            await link.close()
        if known <= state.tried:
            state.tried.clear()
        return bool(state.tried)

    # what arrives

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        """The transport's entry for transfers."""
        return await self.transfers.receive(caller, messages)

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes:
        """The transport's entry for control calls."""
        match method:
            case "Handshake":
                hello = codec.decode(pb.Hello, request)
                return codec.encode(self.handshakes.answer(caller, hello))
            case "Beat":
                beat = codec.decode(pb.Beat, request)
                self._check_run(beat)
                peer = self.table.peer(caller, beat.sender)
                self.heartbeats.receive(peer, beat)
                return codec.encode(self.heartbeats.make(peer))
            case "Peers":
                question = codec.decode(pb.Peers, request)
                self._check_run(question)
                self.table.member(caller, question.sender)
                return codec.encode(self.exchange(question))
            case "Leave":
                leave = codec.decode(pb.Leave, request)
                self._check_run(leave)
                self._leave(self.table.peer(caller, leave.sender), leave)
                return codec.encode(leave)

    def _leave(self, peer: Peer, leave: pb.Leave) -> None:
        table = self.table
        table.membership.leave(peer, incarnation=leave.incarnation, finished=leave.finished)
        table.observer.presence(peer, False)
        table.changed.notify()

    def _check_run(self, message: pb.Beat | pb.Leave | pb.Peers) -> None:
        """Raises Malformed: it is another run's."""
        if message.run != self.table.parameters.run:
            raise Malformed(codec.sentence(pb.CODE_RUN), pb.CODE_RUN)
