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
        peer_table: PeerTable,
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
        self.peer_table, self.identity, self.transport, self.discovery = (
            peer_table,
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
        self.membership, self.position, self.changed = (
            peer_table.membership,
            peer_table.position,
            peer_table.changed,
        )
        self.transfers = Transfers(
            peer_table, mailbox, self._link, None if transport.insecure else identity
        )
        self.transfer = self.transfers.receive
        self._done, self._done_at, self._ticks = 0, self.now, 0
        self._order = 0

    # life

    @property
    def now(self) -> float:
        return self.peer_table.now

    async def run(self) -> None:
        """Keeps contact with every neighbor until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for peer in self.peer_table.contacts:
                self._tasks.create_task(self._keep(peer), name=f"keep {peer}")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something beside the session, as long as it runs."""
        self._tasks.create_task(work)

    async def goodbye(self, finished: bool) -> None:
        """Tells every neighbor; who can't be told will notice. When all is done there is time to
        try again.
        """
        self.peer_table.stopping = not finished
        me, incarnation = self.peer_table.ids[self.peer_table.me], self.peer_table.incarnation
        leave = pb.Leave(
            run=self.peer_table.terms.run, sender=me, incarnation=incarnation, finished=finished
        )

        async def tell(peer: Peer) -> None:
            for _ in range(LEAVES if finished else 1):
                with suppress(RemoteError, TimeoutError):
                    async with asyncio.timeout(LEAVE_SECONDS):  # a look-up of its name may hang
                        await (await self._link(peer)).call("Leave", codec.encode(leave), 1.0)
                    return

        await asyncio.gather(*(tell(peer) for peer in self.peer_table.contacts))

    async def close(self) -> None:
        for contact in self.peer_table.contacts.values():
            if contact.link is not None:
                await contact.link.close()
                contact.link = None

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        """Drops the edge until a new handshake."""
        self.peer_table.lose(peer, why, idle=idle)

    def remove(self, node_id: str) -> None:
        """A member is in the roster no more: nothing it says counts, and nothing is said to it."""
        peer = self.peer_table.names.pop(node_id, None)
        if peer in self.peer_table.contacts:
            self.membership.remove(peer)
            self.peer_table.contacts[peer].proven = False
            self.peer_table.contacts[peer].wake.notify()
            self.peer_table.observer.presence(peer, False)
        self.changed.notify()

    def adopt(self, version: int) -> None:
        """This node holds a newer roster: handshakes, which are due now, tell the neighbors so."""
        self.peer_table.terms = replace(self.peer_table.terms, roster=version)
        for contact in self.peer_table.contacts.values():
            contact.proven = False
            contact.wake.notify()

    async def _keep(self, peer: Peer) -> None:
        contact, pause = self.peer_table.contacts[peer], RETRY_FIRST
        while self.membership.neighbors[peer].presence is not Presence.REMOVED:
            try:
                if self._needs_handshake(peer):
                    await self._handshake(peer)
                if not self._needs_handshake(peer):
                    await self._beat(peer)
                pause = RETRY_FIRST
                contact.tried.clear()
                await contact.wake.wait(
                    RETRY_FIRST if self._needs_handshake(peer) else self.beat_seconds
                )
            except RemoteError as error:
                self._note(peer, str(error), error.code)
                self.peer_table.observer.wire_error(peer, error.code)
                more = isinstance(error, Unreachable) and await self._redial(peer)
                pause = RETRY_FIRST if more else min(RETRY_MOST, pause * 2)
                await contact.wake.wait(pause * random.uniform(0.5, 1.0))

    def _note(self, peer: Peer, why: str, code: int) -> None:
        neighbor = self.membership.neighbors[peer]
        neighbor.last_error = why
        if code in LASTING:
            neighbor.refusal = why

    def _needs_handshake(self, peer: Peer) -> bool:
        """A handshake is due: for the proof of identity, or to agree on the edge."""
        return not self.peer_table.contacts[peer].proven or self._must_propose(peer)

    def _must_propose(self, peer: Peer) -> bool:
        """It is mine to propose an edge to this neighbor, and there is none."""
        it = self.membership.neighbors[peer]
        none = it.presence in (Presence.UNKNOWN, Presence.LOST)
        return (
            self.peer_table.me < peer
            and none
            and not self.membership.kept_off(peer, it.incarnation, self.now)
        )

    async def _link(self, peer: Peer) -> Link:
        contact = self.peer_table.contacts[peer]
        if contact.link is None:
            found = await self.discovery.addresses(contact.id)
            if not found:
                raise Unreachable(f"No address is known for {peer}.")
            if contact.link is None:  # nobody else made one meanwhile
                contact.address = next(
                    (each for each in found if each not in contact.tried), found[0]
                )
                contact.link = self.transport.link(contact.id, contact.address)
        return contact.link

    async def _redial(self, peer: Peer) -> bool:
        """After a failure: prove anew, and try the next address if there is another. True: one that
        was not tried.
        """
        contact = self.peer_table.contacts[peer]
        contact.proven = False
        contact.tried.add(contact.address)
        known: set[str] = set()
        with suppress(Unreachable):
            known = set(await self.discovery.addresses(contact.id))
        if contact.link is not None and known - {contact.address}:
            link, contact.link = contact.link, None
            await link.close()
        if known <= contact.tried:
            contact.tried.clear()
        return bool(contact.tried)

    # handshake

    async def _handshake(self, peer: Peer) -> None:
        contact, nonce, propose = (
            self.peer_table.contacts[peer],
            secrets.token_bytes(codec.DIGEST),
            self._must_propose(peer),
        )
        hello = pb.Hello(
            protocol=codec.PROTOCOL,
            run=self.peer_table.terms.run,
            roster=self.peer_table.terms.roster,
            sender=self.peer_table.ids[self.peer_table.me],
            receiver=contact.id,
            incarnation=self.peer_table.incarnation,
            nonce=nonce,
            layout=self.peer_table.terms.layout,
            validation=self.peer_table.terms.validation,
            start=self.peer_table.terms.start,
            inputs=self.peer_table.terms.inputs_digest,
            members=self.peer_table.terms.members,
            round=self.position.round,
            from_round=self.position.earliest,
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
                client_id=self.peer_table.ids[self.peer_table.me],
                run=self.peer_table.terms.run,
                expected_id=contact.id,
            )
        if welcome.incarnation < contact.incarnation:
            raise Refused(f"{peer} answered as an earlier process of its own.", pb.CODE_INCARNATION)
        contact.spki = welcome.spki
        contact.proven = contact.link is link
        self.changed.notify()
        if self._did_tell(welcome.remembered):
            self.check_remembered(welcome.remembered.sequence, welcome.remembered.digest)
        self.remember(peer, welcome.ledger)
        if propose and welcome.from_round > self.position.round:
            self._agree(peer, welcome, welcome.from_round, confirmed=True)

    def _agree(
        self, peer: Peer, said: pb.Hello | pb.Welcome, live_from: int, *, confirmed: bool
    ) -> None:
        self.peer_table.contacts[peer].renew(said.incarnation)
        self.membership.agree(
            peer,
            live_from=live_from,
            incarnation=said.incarnation,
            round=said.round,
            order=said.order,
            now=self.now,
            confirmed=confirmed,
        )
        self.peer_table.observer.presence(peer, True)
        self.changed.notify()

    def _handle_hello(self, caller: str | None, hello: pb.Hello) -> pb.Welcome:
        """The answer to a neighbor's handshake. Nothing is signed for anybody else, nor for another
        run.
        """
        peer = self.peer_table.peer(caller, hello.sender)
        contact = self.peer_table.contacts[peer]
        if hello.nonce == contact.nonce:
            return contact.welcome  # the same call, delivered twice
        code, detail = self._compare(hello)
        if code == pb.CODE_OK:
            code, detail = self._unready(peer, hello)
        reply = pb.Welcome(
            detail=detail, incarnation=self.peer_table.incarnation, version=self.version
        )
        reply.code = code  # type: ignore[assignment]
        if code != pb.CODE_OK:
            self._note(peer, detail, code)
            self.peer_table.observer.refused(peer, code)
            return reply
        if hello.roster > self.peer_table.terms.roster:
            self.peer_table.observer.newer_roster(peer, hello.roster)
        if self.identity is not None:
            me, run = self.peer_table.ids[self.peer_table.me], self.peer_table.terms.run
            reply.spki, reply.signature = (
                self.identity.spki,
                self.identity.sign_welcome(hello.nonce, contact.id, me, run),
            )
        reply.remembered.CopyFrom(self.remember(peer, hello.ledger))
        reply.ledger.CopyFrom(self._head())
        reply.round, reply.order = self.position.round, self._next()
        reply.from_round = max(hello.from_round, self.position.earliest)
        it = self.membership.neighbors[peer]
        if hello.incarnation > it.incarnation:
            self.membership.restarted(peer, hello.incarnation)
            self.peer_table.observer.presence(peer, False)
            self.changed.notify()
        if hello.propose and peer < self.peer_table.me:
            self._agree(peer, hello, reply.from_round, confirmed=False)
        if self._needs_handshake(peer):
            contact.wake.notify()
        contact.nonce, contact.welcome, contact.asked = (
            hello.nonce,
            reply,
            (hello.incarnation, hello.order),
        )
        return reply

    def _unready(self, peer: Peer, hello: pb.Hello) -> tuple[int, str]:
        """Why the edge can't be agreed on just now."""
        known = self.membership.neighbors[peer].incarnation
        if hello.incarnation < known:
            return pb.CODE_INCARNATION, codec.sentence(pb.CODE_INCARNATION)
        if (hello.incarnation, hello.order) <= self.peer_table.contacts[peer].asked:
            return pb.CODE_DUPLICATE, "A later handshake of the same process was answered already."
        if hello.propose and (why := self.membership.kept_off(peer, hello.incarnation, self.now)):
            return pb.CODE_NOT_READY, why
        if hello.propose and not self.peer_table.contacts[peer].proven:
            self.peer_table.contacts[peer].wake.notify()
            return pb.CODE_NOT_READY, "The caller could not be dialed back yet."
        return pb.CODE_OK, ""

    def _compare(self, hello: pb.Hello) -> tuple[int, str]:
        """The first thing that keeps the two ends apart, in a sentence."""
        if self.peer_table.stopping:
            return pb.CODE_STOPPING, codec.sentence(pb.CODE_STOPPING)
        if hello.protocol != codec.PROTOCOL:
            here, there = (
                f"here {codec.PROTOCOL} ({self.version})",
                f"there {hello.protocol} ({hello.version})",
            )
            return pb.CODE_PROTOCOL, f"{codec.sentence(pb.CODE_PROTOCOL)} ({here}, {there})"
        if hello.receiver != self.peer_table.ids[self.peer_table.me]:
            return pb.CODE_IDENTITY, codec.sentence(pb.CODE_IDENTITY)
        return self.peer_table.terms.difference(hello)

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
            run=self.peer_table.terms.run,
            sender=self.peer_table.ids[self.peer_table.me],
            incarnation=self.peer_table.incarnation,
            round=self.position.round,
            phase=self.position.phase,
            progress=self._progress(),
            working=self.position.working(),
            waiting_for=[self.peer_table.ids[peer] for peer in sorted(self.position.waiting_for)],
            live=[self.peer_table.ids[peer] for peer in sorted(self.membership.present())],
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
        done = self.peer_table.moved + self.position.work_done()
        if done != self._done and self.now - self._done_at >= TICK:
            self._done, self._done_at, self._ticks = done, self.now, self._ticks + 1
        return self._ticks

    def _idle_ms(self) -> int:
        """Since there was progress here, or anywhere down the chain of those this node waits for;
        in whole TICKs.
        """
        idle = [self.membership.idle(peer, self.now) for peer in self.position.waiting_for]
        ticks = int(min([self.now - self._done_at, *idle]) / TICK)
        return int(1000 * TICK * ticks)

    async def _beat(self, peer: Peer) -> None:
        request = codec.encode(self._make_heartbeat())
        sent = self.now
        reply = codec.decode(
            pb.Beat, await (await self._link(peer)).call("Beat", request, CALL_SECONDS)
        )
        it = self.membership.neighbors[peer]
        it.rtt = self.now - sent
        self.peer_table.observer.round_trip(peer, it.rtt)
        if (reply.sender, reply.run) == (
            self.peer_table.contacts[peer].id,
            self.peer_table.terms.run,
        ):
            self._on_heartbeat(peer, reply)

    def _on_heartbeat(self, peer: Peer, heartbeat: pb.Beat) -> None:
        self.remember(peer, heartbeat.ledger)
        before = self.membership.neighbors[peer].presence
        self.membership.heartbeat(
            peer,
            incarnation=heartbeat.incarnation,
            order=heartbeat.order,
            round=heartbeat.round,
            phase=heartbeat.phase,
            progress=heartbeat.progress,
            waiting_for=self.peer_table.known(heartbeat.waiting_for),
            idle=heartbeat.idle_ms / 1000,
            names_me=self.peer_table.ids[self.peer_table.me] in heartbeat.live,
            now=self.now,
        )
        if self.membership.neighbors[peer].presence is not before:
            self.peer_table.observer.presence(peer, False)
            self.peer_table.contacts[peer].wake.notify()
        self.changed.notify()

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
            self.peer_table.member(caller, said.sender)
            return codec.encode(self.exchange(said))
        leave = codec.decode(pb.Leave, request)
        peer = self._of_this_run(caller, leave)
        self.membership.leave(peer, incarnation=leave.incarnation, finished=leave.finished)
        self.peer_table.observer.presence(peer, False)
        self.changed.notify()
        return codec.encode(leave)

    def _of_this_run(self, caller: str | None, said: pb.Beat | pb.Leave) -> Peer:
        self._check_run(said)
        return self.peer_table.peer(caller, said.sender)

    def _check_run(self, said: pb.Beat | pb.Leave | pb.Peers) -> None:
        if said.run != self.peer_table.terms.run:
            raise Malformed(codec.sentence(pb.CODE_RUN), pb.CODE_RUN)
