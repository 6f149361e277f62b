"""Transfers: header, frames, trailer; one verdict. What is let in, what is tried again, and what is
counted.

What arrives is checked in this order: identity, run, roster, incarnation, replay, mailbox; only
then is anything read, into a sink of this node's own choosing. What leaves is sent until it is
delivered or refused for good; sending it again sends the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from peer import codec
from peer.errors import Malformed, RemoteError
from peer.failpoint import failpoint
from peer.identity.keys import Identity, stated
from peer.message import DType, Peer
from peer.session.interfaces import FrameSource, Incoming, Key, OpenPhase, Role, Shape, Sink
from peer.session.mailbox import Admission, Mailbox
from peer.session.peers import PeerTable
from peer.session.statements import Statements
from peer.transport import Link
from peer.v1 import peer_pb2 as pb

RETRY_FIRST, RETRY_MOST = 0.1, 2.0
"""Seconds between attempts, doubled with jitter from the first to the most."""

SLOWEST = 32 << 10
"""Bytes a second: a transfer that comes more slowly, beyond a deadline, is refused as stalled."""

REFUSALS = {
    Admission.STALE: pb.CODE_STALE,
    Admission.AHEAD: pb.CODE_AHEAD,
    Admission.DUPLICATE: pb.CODE_DUPLICATE,
    Admission.BUSY: pb.CODE_BUSY,
    Admission.KIND: pb.CODE_KIND,
    Admission.LAYOUT: pb.CODE_LAYOUT,
}
PASSING = frozenset(
    {pb.CODE_BUSY, pb.CODE_AHEAD, pb.CODE_NOT_READY, pb.CODE_INCARNATION, pb.CODE_STALLED}
)
"""Refusals that may be gone in a moment."""


class Transfers:
    """All transfers of one node, both ways. `link` gives the way to a neighbor."""

    def __init__(
        self,
        table: PeerTable,
        mailbox: Mailbox,
        link: Callable[[Peer], Awaitable[Link]],
        identity: Identity | None = None,
    ) -> None:
        """`identity` signs what is sent to every neighbor; None if no key proves anything."""
        self.table, self.mailbox, self._link, self.identity = (
            table,
            mailbox,
            link,
            identity,
        )
        self.statements = Statements()
        self.sent_bytes: Counter[Peer] = Counter()

    # what comes

    async def receive(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        """The transport's entrance for transfers: header, frames, trailer; one verdict."""
        code: int
        try:
            async with asyncio.timeout(self.table.membership.deadline):
                header = codec.decode(pb.Header, await anext(messages))
            peer = self.table.peer(caller, header.sender)
            code = self._refusal(peer, header)
            if code == pb.CODE_OK:
                self._compare(peer, header.statements)
                code = await self._receive(peer, header, messages)
        except StopAsyncIteration:
            code = pb.CODE_MALFORMED
        except Malformed as error:
            code = error.code or pb.CODE_MALFORMED
        except TimeoutError:
            code = pb.CODE_STALLED
        verdict = pb.Verdict(detail=codec.sentence(code))
        verdict.code = code  # type: ignore[assignment]
        return codec.encode(verdict)

    def _refusal(self, peer: Peer, header: pb.Header) -> pb.Code:
        state = self.table.states[peer]
        if state.contradicted:
            return pb.CODE_NOT_A_NEIGHBOR
        if (code := self.table.refusal(header)) != pb.CODE_OK:
            return code
        if header.incarnation != state.incarnation:
            return (
                pb.CODE_NOT_READY if header.incarnation > state.incarnation else pb.CODE_INCARNATION
            )
        return pb.CODE_DUPLICATE if state.replayed(header.sequence) else pb.CODE_OK

    async def _receive(
        self, peer: Peer, header: pb.Header, messages: AsyncIterator[bytes]
    ) -> pb.Code:
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
                await self.table.changed.wait()
                admission = self.mailbox.offer(
                    peer, key, shape, withheld=header.withheld, parked=True
                )
            if admission is not Admission.ADMIT:
                return REFUSALS[admission]
        except asyncio.CancelledError:
            self.mailbox.broken(peer, key)
            raise
        self.table.membership.entered(peer, key.round, self.table.now)
        phase = self.mailbox.admitting(key)
        assert phase is not None, "it has just admitted the transfer"
        message = Incoming(
            round=key.round,
            heard=self.table.known(header.heard),
            withheld=header.withheld,
            note=header.note,
        )
        sink = phase.receive(peer, message)
        try:
            await self._read(peer, header, messages, sink)
        except BaseException as error:
            self.mailbox.broken(peer, key)
            if isinstance(error, Malformed) and error.code != pb.CODE_STALLED:
                self.table.membership.neighbors[
                    peer
                ].last_error = f"It sent what can't be used: {error}"
                self.table.observer.rejected(peer, error.code)
            raise
        self.mailbox.delivered(peer, key)
        phase.complete(peer, message, sink)
        failpoint("after_recv")
        self.table.changed.notify()
        return pb.CODE_OK

    async def _read(
        self, peer: Peer, header: pb.Header, messages: AsyncIterator[bytes], sink: Sink
    ) -> None:
        left, hashed = (
            self.table.membership.deadline + header.bytes / SLOWEST,
            hashlib.sha256(),
        )
        for offset, length in codec.frames(header.bytes):
            since = self.table.now
            async with asyncio.timeout(min(left, self.table.membership.deadline)):
                data = codec.frame(await anext(messages), length)
            left -= self.table.now - since
            if self._is_stated(header.role):
                hashed.update(data)  # less than a millisecond
            await sink.write(offset, data)
            self._count(peer, "received", header.kind, length)
        async with asyncio.timeout(self.table.membership.deadline):
            trailer = codec.decode(pb.Trailer, await anext(messages))
        if trailer.bytes != header.bytes:
            raise Malformed("The sender gave up on the way.", pb.CODE_STALLED)
        if self._is_stated(header.role):
            hashed.update(header.note)
            self._note(peer, header, trailer, hashed.digest())

    def _count(self, peer: Peer, direction: str, kind: str, count: int) -> None:
        self.table.moved += 1
        self.table.membership.moved(peer, self.table.now)
        self.table.observer.bytes_moved(peer, direction, kind, count)

    # what is sent to every neighbor

    def _is_stated(self, role: int) -> bool:
        return self.identity is not None and role != pb.ROLE_ANSWER

    def _statement(self, sender: str, incarnation: int, key: Key, digest: bytes) -> pb.Statement:
        return pb.Statement(
            sender=sender,
            incarnation=incarnation,
            round=key.round,
            phase=key.phase,
            role=pb.Role.Name(key.role),
            digest=digest,
        )

    def _note(self, peer: Peer, header: pb.Header, trailer: pb.Trailer, digest: bytes) -> None:
        """What came was stated as it came, or is not taken."""
        key = Key(header.round, header.phase, Role(header.role))
        statement = self._statement(header.sender, header.incarnation, key, digest)
        statement.signature = trailer.signature
        if trailer.digest != digest or not stated(
            self.table.states[peer].spki, self.table.parameters.run, statement
        ):
            raise Malformed("The payload is not what its sender signed.")
        if (before := self.statements.note(peer, statement)) is not None:
            self._contradicted(peer, peer, before, statement)

    def _compare(self, told_by: Peer, statements: Iterable[pb.Statement]) -> None:
        """What a neighbor heard of others, with what this node heard of them.

        Raises:
            Malformed: it passes on what was never signed, so that it lies itself.
        """
        for other in statements:
            peer = self.table.names.get(other.sender, "")
            here = self.statements.contradicted(peer, other)
            if here is None or self.table.states[peer].contradicted:
                continue
            if not stated(self.table.states[peer].spki, self.table.parameters.run, other):
                raise Malformed("A statement is passed on that its sender did not sign.")
            self._contradicted(peer, told_by, here, other)

    def _contradicted(
        self, peer: Peer, told_by: Peer, here: pb.Statement, there: pb.Statement
    ) -> None:
        state = self.table.states[peer]
        if not state.contradicted:
            state.contradicted = True
            self.table.observer.contradicted(peer, told_by, state.spki, here, there)
            self.table.cut(
                peer, f"It told this node and {told_by} different things in round {there.round}."
            )

    # phases

    @property
    def round(self) -> int:
        """The round whose transfers are let in; -1 before the first."""
        return self.mailbox.round

    def begin(self, round: int) -> None:
        """Enters a round: transfers of earlier rounds are refused from now on."""
        self.mailbox.begin(round)
        self.table.changed.notify()

    def open(self, phase: OpenPhase) -> None:
        """From now on what this phase expects is let in."""
        self.mailbox.open(phase)
        self.table.changed.notify()

    def close(self, phase: OpenPhase) -> None:
        """Nothing is let in for it any more."""
        self.mailbox.close(phase.key)
        self.table.changed.notify()

    # what leaves

    async def deliver(
        self,
        peer: Peer,
        key: Key,
        shape: Shape,
        source: FrameSource,
        *,
        heard: Iterable[Peer] = (),
        withheld: bool = False,
    ) -> bool:
        """Sends one transfer, trying again until it is delivered (True) or refused for good
        (False).

        Cancel it to give up. A retry sends the same bytes.
        """
        pause = RETRY_FIRST
        while True:
            try:
                verdict = await self._send(peer, key, shape, source, heard, withheld)
                code, why = verdict.code, verdict.detail
            except RemoteError as error:
                code, why = pb.CODE_NOT_READY, str(error)
            if code in (pb.CODE_OK, pb.CODE_DUPLICATE):
                return True
            self.table.membership.neighbors[peer].last_error = why
            self.table.observer.wire_error(peer, code)
            if code not in PASSING:
                return False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(RETRY_MOST, pause * 2)

    async def _send(
        self,
        peer: Peer,
        key: Key,
        shape: Shape,
        source: FrameSource,
        heard: Iterable[Peer],
        withheld: bool,
    ) -> pb.Verdict:
        state = self.table.states[peer]
        while not state.proven:
            await self.table.changed.wait()
        state.sent += 1
        noted = self.statements.noted
        header = pb.Header(
            sequence=state.sent,
            round=key.round,
            phase=key.phase,
            role=pb.Role.Name(key.role),
            kind=shape.kind,
            layout=shape.layout,
            parts=shape.parts,
            dtype=pb.DType.Name(shape.dtype),
            bytes=0 if withheld else shape.nbytes,
            heard=sorted(self.table.ids[name] for name in heard),
            withheld=withheld,
            note=source.note,
            statements=self._heard_of_others(peer),
        )
        self.table.address(header, peer)
        link = await self._link(peer)
        verdict = codec.decode(
            pb.Verdict, await link.transfer(self._messages(peer, key, header, source))
        )
        if verdict.code == pb.CODE_OK:
            state.passed_on = max(state.passed_on, noted)
        return verdict

    def _heard_of_others(self, to: Peer) -> list[pb.Statement]:
        """What this neighbor was not told yet, as much as a header carries."""
        news = self.statements.newer(self.table.states[to].passed_on, [to])
        return (
            news if len(news) <= codec.MAX_STATEMENTS else random.sample(news, codec.MAX_STATEMENTS)
        )

    async def _messages(
        self, peer: Peer, key: Key, header: pb.Header, source: FrameSource
    ) -> AsyncIterator[bytes]:
        failpoint("before_send")
        yield codec.encode(header)
        for offset, length in codec.frames(header.bytes):
            yield await source.frame(offset, length)
            failpoint("mid_stream")
            self.sent_bytes[peer] += length
            self._count(peer, "sent", header.kind, length)
        trailer = pb.Trailer(bytes=header.bytes)
        if self.identity is not None and self._is_stated(header.role):
            trailer.digest = await source.digest()
            statement = self._statement(header.sender, header.incarnation, key, trailer.digest)
            trailer.signature = self.identity.sign_statement(header.run, statement)
        yield codec.encode(trailer)
        failpoint("after_send")
