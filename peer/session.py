"""One node's conversations with its neighbours: handshakes, beats, transfers. Bytes only; rounds mean nothing here.

Every neighbour is dialled, shaken hands with, and sent a beat about once a second, for ever: a neighbour that comes
back is taken back. Of two neighbours the one whose name sorts first proposes from which round on the edge is used, the
other answers with that round or a later one, and both keep to it. What arrives is checked in this order: identity,
run, incarnation, mailbox; only then is anything read, into a sink of this node's own choosing.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from peer import codec
from peer.discovery import Discovery
from peer.errors import Malformed, Refused, RemoteError, Unreachable
from peer.exchange import Inbox, Observer, Payload, Signal, Sink
from peer.failpoint import failpoint
from peer.identity import Identity, verify_welcome
from peer.mailbox import Admission, Key, Mailbox, Role, Shape
from peer.membership import Membership, Presence
from peer.message import DType, Peer
from peer.transport import Link, Method, Transport
from peer.v1 import peer_pb2 as pb

RETRY_FIRST, RETRY_MOST = 0.1, 2.0
"""Seconds between attempts to reach a neighbour: doubled with jitter from the first to the most."""
CALL_SECONDS = 5.0
"""A control call that takes longer has failed; the next one follows."""
REPLAY_WINDOW = 4096
"""Sequence numbers per neighbour that are remembered; older ones are refused unseen."""

REFUSALS = {
    Admission.STALE: pb.CODE_STALE,
    Admission.AHEAD: pb.CODE_AHEAD,
    Admission.DUPLICATE: pb.CODE_DUPLICATE,
    Admission.BUSY: pb.CODE_BUSY,
    Admission.KIND: pb.CODE_KIND,
    Admission.LAYOUT: pb.CODE_LAYOUT,
}
PASSING = frozenset({pb.CODE_BUSY, pb.CODE_AHEAD, pb.CODE_NOT_READY, pb.CODE_INCARNATION, pb.CODE_STALLED})
"""Refusals that may be gone in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both ends must have in common; compared in the handshake."""

    run: str
    roster: int
    layout: bytes
    validation: bytes = b""


@dataclass(slots=True, kw_only=True)
class Position:
    """Where this node stands; the driver writes it, beats carry it."""

    round: int = -1
    phase: int = 0
    first: int = 0
    """The first round this node will enter."""
    kind: str = ""
    """What the present phase exchanges, for people."""
    since: float = 0.0
    """When the present phase began."""
    waiting_for: frozenset[Peer] = frozenset()
    working: Callable[[], bool] = lambda: False
    work_done: Callable[[], int] = lambda: 0

    @property
    def earliest(self) -> int:
        """The first round from which an edge can be used: the next but one while inside a round."""
        return self.round + 2 if self.round >= 0 else self.first


@dataclass(slots=True)
class Contact:
    """What the session knows of one neighbour beyond its membership."""

    id: str
    link: Link | None = None
    address: str = ""
    proven: bool = False
    """It showed that it holds the key of its id, over the present link."""
    sent: int = 0
    seen: set[int] = field(default_factory=set)
    newest: int = 0
    incarnation: int = 0
    poke: Signal = field(default_factory=Signal)
    nonce: bytes = b""
    welcome: pb.Welcome = field(default_factory=pb.Welcome)
    """The neighbour's last handshake and the answer to it."""


class Session:
    """See the module's docstring. Create it on the event loop's thread; call `run` in a task of its own."""

    def __init__(
        self,
        *,
        me: Peer,
        identity: Identity | None,
        ids: dict[Peer, str],
        neighbours: Iterable[Peer],
        terms: Terms,
        transport: Transport,
        mailbox: Mailbox,
        membership: Membership,
        discovery: Discovery,
        incarnation: int,
        beat_seconds: float = 1.0,
        ledger_head: Callable[[], tuple[int, bytes]] = lambda: (0, b""),
        remember: Callable[[Peer, int, bytes], tuple[int, bytes]] = lambda peer, sequence, digest: (0, b""),
        check_remembered: Callable[[int, bytes], None] = lambda sequence, digest: None,
        observer: Observer | None = None,
        version: str = "",
    ) -> None:
        self.me, self.identity, self.ids, self.terms = me, identity, ids, terms
        self.names = {node_id: name for name, node_id in ids.items()}
        self.transport, self.mailbox, self.membership, self.discovery = transport, mailbox, membership, discovery
        self.incarnation, self.beat_seconds, self.version = incarnation, beat_seconds, version
        self.ledger_head, self.remember, self.check_remembered = ledger_head, remember, check_remembered
        self.observer = observer or Observer()
        self.position = Position()
        self.changed = Signal()
        self.contacts = {peer: Contact(ids[peer]) for peer in sorted(neighbours)}
        self.sent_bytes: Counter[Peer] = Counter()
        self.moved = 0
        self._done, self._done_at = 0, self.now
        self.stopping = False
        self._inboxes: dict[tuple[int, Role], Inbox] = {}

    # ------------------------------------------------------------------------------------------------- life

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Keeps contact with every neighbour until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for peer in self.contacts:
                self._tasks.create_task(self._keep(peer), name=f"keep {peer}")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something beside the session, as long as it runs."""
        self._tasks.create_task(work)

    async def goodbye(self, finished: bool) -> None:
        """Tells every neighbour; failures don't matter any more."""
        self.stopping = not finished
        leave = pb.Leave(run=self.terms.run, sender=self.ids[self.me], incarnation=self.incarnation, finished=finished)

        async def tell(peer: Peer) -> None:
            try:
                await (await self._link(peer)).call("Leave", codec.encode(leave), 1.0)
            except RemoteError:
                pass

        await asyncio.gather(*(tell(peer) for peer in self.contacts))

    async def close(self) -> None:
        for contact in self.contacts.values():
            if contact.link is not None:
                await contact.link.close()
                contact.link = None

    def lose(self, peer: Peer, why: str) -> None:
        """Drops the edge until a new handshake."""
        self.membership.lose(peer, why)
        self.observer.presence(peer, False)
        self.contacts[peer].poke.notify()
        self.changed.notify()

    async def _keep(self, peer: Peer) -> None:
        contact, pause = self.contacts[peer], RETRY_FIRST
        while True:
            try:
                if self._estranged(peer):
                    await self._shake(peer)
                else:
                    await self._beat(peer)
                pause = RETRY_FIRST
                await contact.poke.wait(RETRY_FIRST if self._estranged(peer) else self.beat_seconds)
            except RemoteError as error:
                self.membership.neighbours[peer].last_error = str(error)
                self.observer.wire_error(peer, error.code)
                if isinstance(error, Unreachable):
                    await self._redial(peer)
                pause = min(RETRY_MOST, pause * 2)
                await contact.poke.wait(pause * random.uniform(0.5, 1.0))

    def _estranged(self, peer: Peer) -> bool:
        """A handshake is due: for the proof of identity, or to agree on the edge."""
        return not self.contacts[peer].proven or self._unagreed(peer)

    def _unagreed(self, peer: Peer) -> bool:
        """It is mine to propose an edge to this neighbour, and there is none."""
        return self.me < peer and self.membership.neighbours[peer].presence in (Presence.UNKNOWN, Presence.LOST)

    async def _link(self, peer: Peer) -> Link:
        contact = self.contacts[peer]
        if contact.link is None:
            found = list(await self.discovery.addresses(contact.id))
            if not found:
                raise Unreachable(f"No address is known for {peer}.")
            contact.address = (
                found[(found.index(contact.address) + 1) % len(found)] if contact.address in found else found[0]
            )
            contact.link = self.transport.link(contact.id, contact.address)
        return contact.link

    async def _redial(self, peer: Peer) -> None:
        """After a failure: prove anew, and try the next address if there is another."""
        contact = self.contacts[peer]
        contact.proven = False
        known = await self.discovery.addresses(contact.id)
        if contact.link is not None and set(known) - {contact.address}:
            link, contact.link = contact.link, None
            await link.close()

    # -------------------------------------------------------------------------------------------- handshake

    async def _shake(self, peer: Peer) -> None:
        contact, nonce, propose = self.contacts[peer], secrets.token_bytes(codec.DIGEST), self._unagreed(peer)
        hello = pb.Hello(
            protocol=codec.PROTOCOL,
            run=self.terms.run,
            roster=self.terms.roster,
            sender=self.ids[self.me],
            receiver=contact.id,
            incarnation=self.incarnation,
            nonce=nonce,
            layout=self.terms.layout,
            validation=self.terms.validation,
            round=self.position.round,
            from_round=self.position.earliest,
            ledger=self._head(),
            version=self.version,
            propose=propose,
        )
        link = await self._link(peer)
        welcome = codec.decode(pb.Welcome, await link.call("Handshake", codec.encode(hello), CALL_SECONDS))
        if self.identity is not None and not self.transport.insecure:
            verify_welcome(
                welcome.spki,
                welcome.signature,
                nonce=nonce,
                client_id=self.ids[self.me],
                run=self.terms.run,
                expected_id=contact.id,
            )
        if welcome.code != pb.CODE_OK:
            raise Refused(f"{peer} refuses: {welcome.detail or codec.sentence(welcome.code)}", welcome.code)
        contact.proven = contact.link is link
        self.changed.notify()
        self.check_remembered(welcome.remembered.sequence, welcome.remembered.digest)
        self.remember(peer, welcome.ledger.sequence, welcome.ledger.digest)
        if propose and welcome.from_round > self.position.round:
            self._agree(peer, welcome.from_round, welcome.incarnation, welcome.round)

    def _agree(self, peer: Peer, live_from: int, incarnation: int, round: int) -> None:
        contact = self.contacts[peer]
        if incarnation != contact.incarnation:
            contact.incarnation, contact.seen, contact.newest = incarnation, set(), 0
        self.membership.agree(peer, live_from=live_from, incarnation=incarnation, round=round, now=self.now)
        self.observer.presence(peer, True)
        self.changed.notify()

    def _welcome(self, caller: str | None, hello: pb.Hello) -> pb.Welcome:
        code, detail = self._compare(hello)
        reply = pb.Welcome(code=code, detail=detail, incarnation=self.incarnation, version=self.version)
        if self.identity is not None:
            reply.spki = self.identity.spki
            reply.signature = self.identity.sign_welcome(hello.nonce, hello.sender, hello.receiver, hello.run)
        if code != pb.CODE_OK:
            return reply
        peer = self._peer(caller, hello.sender)
        it, contact = self.membership.neighbours[peer], self.contacts[peer]
        if hello.nonce == contact.nonce:
            return contact.welcome  # the same call, delivered twice
        if hello.incarnation < it.incarnation:
            reply.code = pb.CODE_INCARNATION
            return reply
        sequence, digest = self.remember(peer, hello.ledger.sequence, hello.ledger.digest)
        reply.remembered.CopyFrom(pb.LedgerHead(sequence=sequence, digest=digest))
        reply.ledger.CopyFrom(self._head())
        reply.round = self.position.round
        reply.from_round = max(hello.from_round, self.position.earliest)
        if hello.incarnation > it.incarnation:
            it.presence, it.incarnation = Presence.UNKNOWN, hello.incarnation
            self.changed.notify()
        if hello.propose and peer < self.me:
            self._agree(peer, reply.from_round, hello.incarnation, hello.round)
        if self._estranged(peer):
            contact.poke.notify()
        contact.nonce, contact.welcome = hello.nonce, reply
        return reply

    def _compare(self, hello: pb.Hello) -> tuple[pb.Code, str]:
        """The first thing in which the two ends differ, in a sentence."""
        mine, version = self.terms, hello.version or "an unnamed version"
        if self.stopping:
            return pb.CODE_STOPPING, codec.sentence(pb.CODE_STOPPING)
        if hello.protocol != codec.PROTOCOL:
            here = f"here {codec.PROTOCOL} ({self.version}), there {hello.protocol} ({version})"
            return pb.CODE_PROTOCOL, f"{codec.sentence(pb.CODE_PROTOCOL)} ({here})"
        if hello.receiver != self.ids[self.me]:
            return pb.CODE_IDENTITY, codec.sentence(pb.CODE_IDENTITY)
        for same, code, here, there in (
            (hello.run == mine.run, pb.CODE_RUN, mine.run, hello.run),
            (hello.roster == mine.roster, pb.CODE_ROSTER, f"version {mine.roster}", f"version {hello.roster}"),
            (hello.layout == mine.layout, pb.CODE_LAYOUT, mine.layout.hex()[:12], hello.layout.hex()[:12]),
            (hello.validation == mine.validation, pb.CODE_VALIDATION, "one digest", "another"),
        ):
            if not same:
                return code, f"{codec.sentence(code)} (At {self.me}: {here}; at the caller: {there}.)"
        return pb.CODE_OK, ""

    def _head(self) -> pb.LedgerHead:
        sequence, digest = self.ledger_head()
        return pb.LedgerHead(sequence=sequence, digest=digest)

    # ------------------------------------------------------------------------------------------------ beats

    def _pulse(self) -> pb.Beat:
        return pb.Beat(
            run=self.terms.run,
            sender=self.ids[self.me],
            incarnation=self.incarnation,
            round=self.position.round,
            phase=self.position.phase,
            progress=self.moved + self.position.work_done(),
            working=self.position.working(),
            waiting_for=[self.ids[peer] for peer in sorted(self.position.waiting_for)],
            live=[self.ids[peer] for peer in sorted(self.membership.present())],
            ledger=self._head(),
            idle_ms=min(self._idle_ms(), 0xFFFFFFFF),
        )

    def _idle_ms(self) -> int:
        """Since there was progress here, or anywhere down the chain of those this node waits for."""
        done = self.moved + self.position.work_done()
        if done != self._done:
            self._done, self._done_at = done, self.now
        idle = [self.membership.idle(peer, self.now) for peer in self.position.waiting_for]
        return int(1000 * min([self.now - self._done_at, *idle]))

    async def _beat(self, peer: Peer) -> None:
        request = codec.encode(self._pulse())
        sent = self.now
        reply = codec.decode(pb.Beat, await (await self._link(peer)).call("Beat", request, CALL_SECONDS))
        it = self.membership.neighbours[peer]
        it.rtt = self.now - sent
        self.observer.round_trip(peer, it.rtt)
        if reply.sender == self.contacts[peer].id:
            self._felt(peer, reply)

    def _felt(self, peer: Peer, beat: pb.Beat) -> None:
        self.remember(peer, beat.ledger.sequence, beat.ledger.digest)
        before = self.membership.neighbours[peer].presence
        self.membership.beat(
            peer,
            incarnation=beat.incarnation,
            round=beat.round,
            phase=beat.phase,
            progress=beat.progress,
            waiting_for=frozenset(self.names[i] for i in beat.waiting_for if i in self.names),
            idle=beat.idle_ms / 1000,
            names_me=self.ids[self.me] in beat.live,
            now=self.now,
        )
        if self.membership.neighbours[peer].presence is not before:
            self.observer.presence(peer, False)
            self.contacts[peer].poke.notify()
        self.changed.notify()

    # ---------------------------------------------------------------------------------------------- service

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes:
        """The transport's door for control calls."""
        if method == "Handshake":
            return codec.encode(self._welcome(caller, codec.decode(pb.Hello, request)))
        if method == "Beat":
            beat = codec.decode(pb.Beat, request)
            self._felt(self._peer(caller, beat.sender), beat)
            return codec.encode(self._pulse())
        leave = codec.decode(pb.Leave, request)
        peer = self._peer(caller, leave.sender)
        self.membership.leave(peer, incarnation=leave.incarnation, finished=leave.finished)
        self.observer.presence(peer, False)
        self.changed.notify()
        return codec.encode(leave)

    def _peer(self, caller: str | None, sender: str) -> Peer:
        """The neighbour that speaks.

        Raises:
            Malformed: it claims another id than its certificate's, or is no neighbour.
        """
        if caller is not None and caller != sender:
            raise Malformed(codec.sentence(pb.CODE_IDENTITY), pb.CODE_IDENTITY)
        name = self.names.get(sender)
        if name is None or name not in self.contacts:
            raise Malformed(codec.sentence(pb.CODE_NOT_A_NEIGHBOUR), pb.CODE_NOT_A_NEIGHBOUR)
        return name

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        """The transport's door for transfers: header, frames, trailer; one verdict."""
        code: int
        try:
            header = codec.decode(pb.Header, await anext(messages))
            peer = self._peer(caller, header.sender)
            code = self._refusal(peer, header)
            if code == pb.CODE_OK:
                code = await self._receive(peer, header, messages)
        except StopAsyncIteration:
            code = pb.CODE_MALFORMED
        except Malformed as error:
            code = error.code or pb.CODE_MALFORMED
        except TimeoutError:
            code = pb.CODE_STALLED
        verdict = pb.Verdict(detail=codec.sentence(code), round=max(0, self.position.round))
        verdict.code = code  # type: ignore[assignment]
        return codec.encode(verdict)

    def _refusal(self, peer: Peer, header: pb.Header) -> pb.Code:
        contact = self.contacts[peer]
        if self.stopping:
            return pb.CODE_STOPPING
        if (header.protocol, header.run) != (codec.PROTOCOL, self.terms.run):
            return pb.CODE_RUN
        if header.roster != self.terms.roster:
            return pb.CODE_ROSTER
        if header.receiver != self.ids[self.me]:
            return pb.CODE_IDENTITY
        if header.incarnation != contact.incarnation:
            return pb.CODE_NOT_READY if header.incarnation > contact.incarnation else pb.CODE_INCARNATION
        if header.sequence in contact.seen or header.sequence <= contact.newest - REPLAY_WINDOW:
            return pb.CODE_DUPLICATE
        contact.seen.add(header.sequence)
        contact.newest = max(contact.newest, header.sequence)
        if len(contact.seen) > 2 * REPLAY_WINDOW:
            contact.seen = {number for number in contact.seen if number > contact.newest - REPLAY_WINDOW}
        return pb.CODE_OK

    async def _receive(self, peer: Peer, header: pb.Header, messages: AsyncIterator[bytes]) -> pb.Code:
        key = Key(header.round, header.phase, Role(header.role))
        shape = Shape(
            kind=header.kind,
            layout=header.layout,
            parts=header.parts,
            dtype=DType(header.dtype or DType.FLOAT32),
            nbytes=header.bytes,
        )
        try:
            admission = self.mailbox.offer(peer, key, shape, withheld=header.withheld)
            while admission is Admission.PARK:
                await self.changed.wait()
                admission = self.mailbox.offer(peer, key, shape, withheld=header.withheld, parked=True)
            if admission is not Admission.ADMIT:
                return REFUSALS[admission]
        except asyncio.CancelledError:
            self.mailbox.broken(peer, key)
            raise
        heard = frozenset(self.names[i] for i in header.heard if i in self.names)
        sink = self._inboxes[key.phase, key.role].sink(peer, key.round, heard, header.withheld)
        try:
            await self._read(peer, header, messages, sink)
        except BaseException:
            self.mailbox.broken(peer, key)
            raise
        self.mailbox.delivered(peer, key)
        sink.done()
        failpoint("after_recv")
        self.changed.notify()
        return pb.CODE_OK

    async def _read(self, peer: Peer, header: pb.Header, messages: AsyncIterator[bytes], sink: Sink) -> None:
        for offset, length in codec.frames(header.bytes):
            async with asyncio.timeout(self.membership.deadline):
                data = codec.frame(await anext(messages), length)
            await sink.write(offset, data)
            self._count(peer, "received", header.kind, length)
        trailer = codec.decode(pb.Trailer, await anext(messages))
        if trailer.bytes != header.bytes:
            raise Malformed("The sender gave up on the way.", pb.CODE_STALLED)

    def _count(self, peer: Peer, direction: str, kind: str, count: int) -> None:
        self.moved += 1
        self.membership.moved(peer, self.now)
        self.observer.bytes_moved(peer, direction, kind, count)

    # ----------------------------------------------------------------------------------------------- phases

    def begin(self, round: int) -> None:
        """Enters a round: transfers of earlier rounds are refused from now on."""
        self.position.round, self.position.phase = round, 0
        self.mailbox.begin(round)
        self.changed.notify()

    def end(self) -> None:
        """Outside any round: before the first and after the last."""
        self.position.round, self.position.kind = -1, ""
        self.changed.notify()

    def open(self, key: Key, shape: Shape, peers: Iterable[Peer], inbox: Inbox) -> None:
        self._inboxes[key.phase, key.role] = inbox
        self.mailbox.open(key, shape, peers)
        if (key.phase, shape.kind) != (self.position.phase, self.position.kind):
            self.position.since = self.now
        self.position.phase, self.position.kind = max(self.position.phase, key.phase), shape.kind
        self.changed.notify()

    def shut(self, key: Key) -> None:
        self.mailbox.close(key)
        self.changed.notify()

    async def deliver(
        self,
        peer: Peer,
        key: Key,
        shape: Shape,
        payload: Payload,
        *,
        heard: Iterable[Peer] = (),
        withheld: bool = False,
    ) -> bool:
        """Sends one transfer, trying again until it is delivered (True) or refused for good (False).

        Cancel it to give up. A retry sends the same bytes.
        """
        pause = RETRY_FIRST
        while True:
            try:
                verdict = await self._send(peer, key, shape, payload, heard, withheld)
                code, why = verdict.code, verdict.detail
            except RemoteError as error:
                code, why = pb.CODE_NOT_READY, str(error)
            if code in (pb.CODE_OK, pb.CODE_DUPLICATE):
                return True
            self.membership.neighbours[peer].last_error = why
            self.observer.wire_error(peer, code)
            if code not in PASSING:
                return False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(RETRY_MOST, pause * 2)

    async def _send(
        self, peer: Peer, key: Key, shape: Shape, payload: Payload, heard: Iterable[Peer], withheld: bool
    ) -> pb.Verdict:
        contact = self.contacts[peer]
        while not contact.proven:
            await self.changed.wait()
        contact.sent += 1
        header = pb.Header(
            protocol=codec.PROTOCOL,
            run=self.terms.run,
            roster=self.terms.roster,
            sender=self.ids[self.me],
            receiver=contact.id,
            incarnation=self.incarnation,
            sequence=contact.sent,
            round=key.round,
            phase=key.phase,
            role=pb.Role.Name(key.role),
            kind=shape.kind,
            layout=shape.layout,
            parts=shape.parts,
            dtype=pb.DType.Name(shape.dtype),
            bytes=0 if withheld else shape.nbytes,
            heard=sorted(self.ids[name] for name in heard),
            withheld=withheld,
        )
        link = await self._link(peer)
        return codec.decode(pb.Verdict, await link.transfer(self._messages(peer, header, payload)))

    async def _messages(self, peer: Peer, header: pb.Header, payload: Payload) -> AsyncIterator[bytes]:
        failpoint("before_send")
        yield codec.encode(header)
        for offset, length in codec.frames(header.bytes):
            yield await payload.frame(offset, length)
            failpoint("mid_stream")
            self.sent_bytes[peer] += length
            self._count(peer, "sent", header.kind, length)
        yield codec.encode(pb.Trailer(bytes=header.bytes))
        failpoint("after_send")
