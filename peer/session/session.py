"""One node's conversations with its neighbors: handshakes and beats (`transfers.py` has the rest).

Every neighbor is dialed, shaken hands with, and sent a beat about once a second, for ever: a
neighbor that comes back is taken back. Of two neighbors the one whose name sorts first proposes
from which round on the edge is used, the other answers with that round or a later one, and both
keep to it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from peer import codec
from peer.errors import Malformed, Refused, RemoteError, Unreachable
from peer.identity.keys import Identity, verify_welcome
from peer.membership import Presence
from peer.message import Peer
from peer.session.mailbox import Mailbox
from peer.session.peers import LASTING, PeerTable
from peer.session.transfers import RETRY_FIRST, RETRY_MOST, Transfers
from peer.transport import Link, Method, Transport
from peer.v1 import peer_pb2 as pb

TICK = 0.25
"""Seconds: what others are told of this node's progress is no finer than this."""
CALL_SECONDS = 5.0
"""A control call that takes longer has failed; the next one follows."""
LEAVES, LEAVE_SECONDS = 3, 2.0
"""Attempts to say that all rounds are done, and each one's time: a neighbor that does not hear it
lingers.
"""


class Directory(Protocol):
    """Who tells where to dial: `peer.discovery.addresses.Addresses`."""

    async def addresses(self, node_id: str) -> Sequence[str]:
        """Best first; while none is known, empty, or Unreachable with a sentence."""
        ...


def _no_exchange(said: pb.Peers) -> pb.Peers:
    raise Malformed("This node does not exchange addresses.")


class Session:
    """See the module's docstring. Create it on the event loop's thread; call `run` in a task of its
    own.
    """

    def __init__(
        self,
        table: PeerTable,
        *,
        identity: Identity | None,
        transport: Transport,
        mailbox: Mailbox,
        discovery: Directory,
        beat_seconds: float = 1.0,
        ledger_head: Callable[[], tuple[int, bytes]] = lambda: (0, b""),
        ledger_label: bytes = b"",
        remember: Callable[[Peer, pb.LedgerHead], pb.LedgerHead] = lambda peer, head: (
            pb.LedgerHead()
        ),
        check_remembered: Callable[[int, bytes], None] = lambda sequence, digest: None,
        exchange: Callable[[pb.Peers], pb.Peers] = _no_exchange,
        version: str = "",
    ) -> None:
        """`identity` proves this node's key in handshakes; None only on transports that prove
        nothing.

        `ledger_head` is told to neighbors, signed; `remember(peer, head)` notes theirs and returns
        the highest so far; `check_remembered` gets what a neighbor remembers of this node's, if
        this node did tell it. `exchange` answers members that ask for addresses.
        """
        self.table, self.identity, self.transport, self.discovery = (
            table,
            identity,
            transport,
            discovery,
        )
        self.beat_seconds, self.version = beat_seconds, version
        self.ledger_head, self.remember, self.check_remembered = (
            ledger_head,
            remember,
            check_remembered,
        )
        self.exchange = exchange
        self._told = pb.LedgerHead(label=ledger_label)
        self.transfers = Transfers(
            table, mailbox, self._link, None if transport.insecure else identity
        )
        self.transfer = self.transfers.receive
        self._done, self._done_at, self._ticks = 0, self.table.now, 0
        self._order = 0

    # life

    async def run(self) -> None:
        """Keeps contact with every neighbor until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for peer in self.table.states:
                self._tasks.create_task(self._keep(peer), name=f"keep {peer}")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something beside the session, as long as it runs."""
        self._tasks.create_task(work)

    async def goodbye(self, finished: bool) -> None:
        """Tells every neighbor; who can't be told will notice. When all is done there is time to
        try again.
        """
        self.table.stopping = not finished
        me, incarnation = self.table.ids[self.table.me], self.table.incarnation
        leave = pb.Leave(
            run=self.table.parameters.run, sender=me, incarnation=incarnation, finished=finished
        )

        async def tell(peer: Peer) -> None:
            for _ in range(LEAVES if finished else 1):
                with suppress(RemoteError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):  # a look-up of its name may hang
                        await (await self._link(peer)).call("Leave", codec.encode(leave), 1.0)
                    return

        await asyncio.gather(*(tell(peer) for peer in self.table.states))

    async def close(self) -> None:
        for state in self.table.states.values():
            if state.link is not None:
                await state.link.close()
                state.link = None

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        """Drops the edge until a new handshake."""
        self.table.lose(peer, why, idle=idle)

    def remove(self, node_id: str) -> None:
        """A member is in the roster no more: nothing it says counts, and nothing is said to it."""
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

    async def _keep(self, peer: Peer) -> None:
        state, pause = self.table.states[peer], RETRY_FIRST
        while self.table.membership.neighbors[peer].presence is not Presence.REMOVED:
            try:
                if self._needs_handshake(peer):
                    await self._handshake(peer)
                if not self._needs_handshake(peer):
                    await self._beat(peer)
                pause = RETRY_FIRST
                state.tried.clear()
                await state.wake.wait(
                    RETRY_FIRST if self._needs_handshake(peer) else self.beat_seconds
                )
            except RemoteError as error:
                self._note(peer, str(error), error.code)
                self.table.observer.wire_error(peer, error.code)
                more = isinstance(error, Unreachable) and await self._redial(peer)
                pause = RETRY_FIRST if more else min(RETRY_MOST, pause * 2)
                await state.wake.wait(pause * random.uniform(0.5, 1.0))

    def _note(self, peer: Peer, why: str, code: int) -> None:
        neighbor = self.table.membership.neighbors[peer]
        neighbor.last_error = why
        if code in LASTING:
            neighbor.refusal = why

    def _needs_handshake(self, peer: Peer) -> bool:
        """A handshake is due: for the proof of identity, or to agree on the edge."""
        return not self.table.states[peer].proven or self._must_propose(peer)

    def _must_propose(self, peer: Peer) -> bool:
        """It is mine to propose an edge to this neighbor, and there is none."""
        it = self.table.membership.neighbors[peer]
        none = it.presence in (Presence.UNKNOWN, Presence.LOST)
        return (
            self.table.me < peer
            and none
            and not self.table.membership.kept_off(peer, it.incarnation, self.table.now)
        )

    async def _link(self, peer: Peer) -> Link:
        state = self.table.states[peer]
        if state.link is None:
            found = await self.discovery.addresses(state.id)
            if not found:
                raise Unreachable(f"No address is known for {peer}.")
            if state.link is None:  # nobody else made one meanwhile
                state.address = next((each for each in found if each not in state.tried), found[0])
                state.link = self.transport.link(state.id, state.address)
        return state.link

    async def _redial(self, peer: Peer) -> bool:
        """After a failure: prove anew, and try the next address if there is another. True: one that
        was not tried.
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

    # handshake

    async def _handshake(self, peer: Peer) -> None:
        state, nonce, propose = (
            self.table.states[peer],
            secrets.token_bytes(codec.DIGEST),
            self._must_propose(peer),
        )
        hello = pb.Hello(
            protocol=codec.PROTOCOL,
            run=self.table.parameters.run,
            roster=self.table.parameters.roster,
            sender=self.table.ids[self.table.me],
            receiver=state.id,
            incarnation=self.table.incarnation,
            nonce=nonce,
            layout=self.table.parameters.layout,
            validation=self.table.parameters.validation,
            start=self.table.parameters.start,
            inputs=self.table.parameters.inputs_digest,
            members=self.table.parameters.members,
            round=self.table.progress.round,
            from_round=self.table.progress.earliest,
            ledger=self._head(),
            version=self.version,
            propose=propose,
            order=self._next(),
        )
        link = await self._link(peer)
        welcome = codec.decode(
            pb.Welcome, await link.call("Handshake", codec.encode(hello), CALL_SECONDS)
        )
        if welcome.code != pb.CODE_OK:
            raise Refused(
                f"{peer} refuses: {welcome.detail or codec.sentence(welcome.code)}", welcome.code
            )
        if self.identity is not None and not self.transport.insecure:
            verify_welcome(
                welcome.spki,
                welcome.signature,
                nonce=nonce,
                client_id=self.table.ids[self.table.me],
                run=self.table.parameters.run,
                expected_id=state.id,
            )
        if welcome.incarnation < state.incarnation:
            raise Refused(f"{peer} answered as an earlier process of its own.", pb.CODE_INCARNATION)
        state.spki = welcome.spki
        state.proven = state.link is link
        self.table.changed.notify()
        if self._did_tell(welcome.remembered):
            self.check_remembered(welcome.remembered.sequence, welcome.remembered.digest)
        self.remember(peer, welcome.ledger)
        if propose and welcome.from_round > self.table.progress.round:
            self._agree(peer, welcome, welcome.from_round, confirmed=True)

    def _agree(
        self, peer: Peer, said: pb.Hello | pb.Welcome, live_from: int, *, confirmed: bool
    ) -> None:
        self.table.states[peer].renew(said.incarnation)
        self.table.membership.agree(
            peer,
            live_from=live_from,
            incarnation=said.incarnation,
            round=said.round,
            order=said.order,
            now=self.table.now,
            confirmed=confirmed,
        )
        self.table.observer.presence(peer, True)
        self.table.changed.notify()

    def _handle_hello(self, caller: str | None, hello: pb.Hello) -> pb.Welcome:
        """The answer to a neighbor's handshake. Nothing is signed for anybody else, nor for another
        run.
        """
        peer = self.table.peer(caller, hello.sender)
        state = self.table.states[peer]
        if hello.nonce == state.nonce:
            return state.welcome  # the same call, delivered twice
        code, detail = self._compare(hello)
        if code == pb.CODE_OK:
            code, detail = self._unready(peer, hello)
        reply = pb.Welcome(detail=detail, incarnation=self.table.incarnation, version=self.version)
        reply.code = code  # type: ignore[assignment]
        if code != pb.CODE_OK:
            self._note(peer, detail, code)
            self.table.observer.refused(peer, code)
            return reply
        if hello.roster > self.table.parameters.roster:
            self.table.observer.newer_roster(peer, hello.roster)
        if self.identity is not None:
            me, run = self.table.ids[self.table.me], self.table.parameters.run
            reply.spki, reply.signature = (
                self.identity.spki,
                self.identity.sign_welcome(hello.nonce, state.id, me, run),
            )
        reply.remembered.CopyFrom(self.remember(peer, hello.ledger))
        reply.ledger.CopyFrom(self._head())
        reply.round, reply.order = self.table.progress.round, self._next()
        reply.from_round = max(hello.from_round, self.table.progress.earliest)
        it = self.table.membership.neighbors[peer]
        if hello.incarnation > it.incarnation:
            self.table.membership.restarted(peer, hello.incarnation)
            self.table.observer.presence(peer, False)
            self.table.changed.notify()
        if hello.propose and peer < self.table.me:
            self._agree(peer, hello, reply.from_round, confirmed=False)
        if self._needs_handshake(peer):
            state.wake.notify()
        state.nonce, state.welcome, state.asked = (
            hello.nonce,
            reply,
            (hello.incarnation, hello.order),
        )
        return reply

    def _unready(self, peer: Peer, hello: pb.Hello) -> tuple[int, str]:
        """Why the edge can't be agreed on just now."""
        known = self.table.membership.neighbors[peer].incarnation
        if hello.incarnation < known:
            return pb.CODE_INCARNATION, codec.sentence(pb.CODE_INCARNATION)
        if (hello.incarnation, hello.order) <= self.table.states[peer].asked:
            return pb.CODE_DUPLICATE, "A later handshake of the same process was answered already."
        if hello.propose and (
            why := self.table.membership.kept_off(peer, hello.incarnation, self.table.now)
        ):
            return pb.CODE_NOT_READY, why
        if hello.propose and not self.table.states[peer].proven:
            self.table.states[peer].wake.notify()
            return pb.CODE_NOT_READY, "The caller could not be dialed back yet."
        return pb.CODE_OK, ""

    def _compare(self, hello: pb.Hello) -> tuple[int, str]:
        """The first thing that keeps the two ends apart, in a sentence."""
        if self.table.stopping:
            return pb.CODE_STOPPING, codec.sentence(pb.CODE_STOPPING)
        if hello.protocol != codec.PROTOCOL:
            here, there = (
                f"here {codec.PROTOCOL} ({self.version})",
                f"there {hello.protocol} ({hello.version})",
            )
            return pb.CODE_PROTOCOL, f"{codec.sentence(pb.CODE_PROTOCOL)} ({here}, {there})"
        if hello.receiver != self.table.ids[self.table.me]:
            return pb.CODE_IDENTITY, codec.sentence(pb.CODE_IDENTITY)
        return self.table.parameters.difference(hello)

    def _head(self) -> pb.LedgerHead:
        """This node's ledger head, signed once per entry."""
        sequence, digest = self.ledger_head()
        if (sequence, digest) != (self._told.sequence, self._told.digest):
            self._told.sequence, self._told.digest = sequence, digest
            if self.identity is not None:
                self._told.signature = self.identity.sign_head(self._told.label, sequence, digest)
        return self._told

    def _did_tell(self, head: pb.LedgerHead) -> bool:
        if head.sequence == 0 or head.label != self._told.label or self.identity is None:
            return False
        return self.identity.verify_own_head(head.label, head.sequence, head.digest, head.signature)

    # beats

    def _make_heartbeat(self) -> pb.Beat:
        return pb.Beat(
            run=self.table.parameters.run,
            sender=self.table.ids[self.table.me],
            incarnation=self.table.incarnation,
            round=self.table.progress.round,
            phase=self.table.progress.phase,
            progress=self._progress(),
            working=self.table.progress.working(),
            waiting_for=[self.table.ids[peer] for peer in sorted(self.table.progress.waiting_for)],
            live=[self.table.ids[peer] for peer in sorted(self.table.membership.present())],
            ledger=self._head(),
            idle_ms=min(self._idle_ms(), 0xFFFFFFFF),
            order=self._next(),
        )

    def _next(self) -> int:
        """The order of a message that is made now."""
        self._order += 1
        return self._order

    def _progress(self) -> int:
        """Grows by one in every TICK in which anything moved, so that nobody can count chunks of
        work: their number tells the size of a secret batch."""
        done = self.table.moved + self.table.progress.work_done()
        if done != self._done and self.table.now - self._done_at >= TICK:
            self._done, self._done_at, self._ticks = done, self.table.now, self._ticks + 1
        return self._ticks

    def _idle_ms(self) -> int:
        """Since there was progress here, or anywhere down the chain of those this node waits for;
        in whole TICKs.
        """
        idle = [
            self.table.membership.idle(peer, self.table.now)
            for peer in self.table.progress.waiting_for
        ]
        ticks = int(min([self.table.now - self._done_at, *idle]) / TICK)
        return int(1000 * TICK * ticks)

    async def _beat(self, peer: Peer) -> None:
        request = codec.encode(self._make_heartbeat())
        sent = self.table.now
        reply = codec.decode(
            pb.Beat, await (await self._link(peer)).call("Beat", request, CALL_SECONDS)
        )
        it = self.table.membership.neighbors[peer]
        it.rtt = self.table.now - sent
        self.table.observer.round_trip(peer, it.rtt)
        if (reply.sender, reply.run) == (
            self.table.states[peer].id,
            self.table.parameters.run,
        ):
            self._on_heartbeat(peer, reply)

    def _on_heartbeat(self, peer: Peer, heartbeat: pb.Beat) -> None:
        self.remember(peer, heartbeat.ledger)
        before = self.table.membership.neighbors[peer].presence
        self.table.membership.heartbeat(
            peer,
            incarnation=heartbeat.incarnation,
            order=heartbeat.order,
            round=heartbeat.round,
            phase=heartbeat.phase,
            progress=heartbeat.progress,
            waiting_for=self.table.known(heartbeat.waiting_for),
            idle=heartbeat.idle_ms / 1000,
            names_me=self.table.ids[self.table.me] in heartbeat.live,
            now=self.table.now,
        )
        if self.table.membership.neighbors[peer].presence is not before:
            self.table.observer.presence(peer, False)
            self.table.states[peer].wake.notify()
        self.table.changed.notify()

    # service

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes:
        """The transport's entrance for control calls."""
        if method == "Handshake":
            return codec.encode(self._handle_hello(caller, codec.decode(pb.Hello, request)))
        if method == "Beat":
            heartbeat = codec.decode(pb.Beat, request)
            self._on_heartbeat(self._of_this_run(caller, heartbeat), heartbeat)
            return codec.encode(self._make_heartbeat())
        if method == "Peers":
            said = codec.decode(pb.Peers, request)
            self._check_run(said)
            self.table.member(caller, said.sender)
            return codec.encode(self.exchange(said))
        leave = codec.decode(pb.Leave, request)
        peer = self._of_this_run(caller, leave)
        self.table.membership.leave(peer, incarnation=leave.incarnation, finished=leave.finished)
        self.table.observer.presence(peer, False)
        self.table.changed.notify()
        return codec.encode(leave)

    def _of_this_run(self, caller: str | None, said: pb.Beat | pb.Leave) -> Peer:
        self._check_run(said)
        return self.table.peer(caller, said.sender)

    def _check_run(self, said: pb.Beat | pb.Leave | pb.Peers) -> None:
        if said.run != self.table.parameters.run:
            raise Malformed(codec.sentence(pb.CODE_RUN), pb.CODE_RUN)
