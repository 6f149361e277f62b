"""The dialling side: a link to one node, and what went wrong on it in a sentence."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from peer.codec import DIGEST, printable
from peer.errors import Unreachable
from peer.identity.keys import Identity, verify_connection
from peer.transport import Method
from peer.transport.grpc.options import CODES, CONNECT_SECONDS, METHODS, SERVICE
from peer.transport.sockets import why_unreachable
from peer.v1 import peer_pb2

Bulk: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
C = TypeVar("C", bound="grpc.aio.Call")


class Dialer(Protocol):
    """What a link needs of the transport that made it."""

    @property
    def identity(self) -> Identity | None:
        """The newest."""

    def channel(self, node_id: str, address: str) -> grpc.aio.Channel:
        """A new connection-to-be."""

    def revoked(self, node_id: str | None) -> bool: ...

    def forget(self, link: GrpcLink) -> None: ...


class GrpcLink:
    """Implements `peer.transport.Link`: one connection for control, one for bulk."""

    def __init__(self, transport: Dialer, node_id: str, address: str) -> None:
        self.node_id, self.address = node_id, address
        self._transport = transport
        self._calls: set[grpc.aio.Call] = set()
        self._proving = asyncio.Lock()
        self._connect()

    def _connect(self) -> None:
        """Makes both channels, which dial when they are used."""
        self._identity = self._transport.identity
        self._channels = [self._transport.channel(self.node_id, self.address) for _ in range(2)]
        control, bulk = self._channels
        self._control: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {
            method: control.unary_unary(f"/{SERVICE}/{method}") for method in METHODS
        }
        self._bulk: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = bulk.stream_stream(
            f"/{SERVICE}/Transfer"
        )
        self._ask_proof: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = bulk.unary_unary(
            f"/{SERVICE}/Prove"
        )
        self._proven: asyncio.Task[None] | None = None
        """Runs as long as the connection of bulk is the one that was proved."""

    async def call(self, method: Method, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """One control message and its answer, within `timeout` seconds.

        Raises:
            Unreachable: no connection, no answer in time, or the peer refused the call.
        """
        async with self._following(lambda: self._control[method](request, timeout=timeout)) as call:
            reply: bytes | None = await call
            if reply is None:  # grpc.aio's reading of "ended well, without a message"
                raise Unreachable(
                    "The peer ended the call without an answer.", peer_pb2.CODE_MALFORMED
                )
            return reply

    async def transfer(self, messages: AsyncIterable[bytes]) -> bytes:
        """Sends the messages one after another as the receiver takes them; a verdict before the
        last stops the sending.

        Raises:
            Unreachable: no connection, it broke, or the peer ended the transfer without a verdict.
        """
        await self._prove()
        async with self._following(lambda: self._bulk()) as call:
            sending = asyncio.ensure_future(_send(call, messages))
            reading = asyncio.ensure_future(call.read())

            def stop(_: object) -> None:  # or a failing write would hide why the call ended
                sending.cancel()

            call.add_done_callback(stop)
            try:
                await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not sending.cancelled():
                    sending.result()
                verdict: Any = await reading
                if sending.done() and not sending.cancelled() and sending.result():
                    await (
                        call.read()
                    )  # the end of the call, so that it is not cancelled for nothing
            finally:
                for task in (sending, reading):
                    task.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
        if verdict is grpc.aio.EOF:
            raise Unreachable(f"{self.address} ended a transfer without a verdict.")
        return bytes(verdict)

    async def _prove(self) -> None:
        """Makes sure that the connection of bulk leads to the holder of the key. Not covered: a
        connection that breaks and is made again between this and the next call, within one turn of
        the event loop.

        Raises:
            Unreachable: it does not, or there is none.
        """
        async with self._proving:
            await self._renew()
            own = self._identity
            if own is None or (self._proven is not None and not self._proven.done()):
                return
            nonce = secrets.token_bytes(DIGEST)
            async with self._following(
                lambda: self._ask_proof(nonce, timeout=CONNECT_SECONDS)
            ) as call:
                reply = await call
            try:
                proof = peer_pb2.Proof.FromString(reply or b"")
            except DecodeError:
                proof = peer_pb2.Proof()
            if not verify_connection(
                proof.spki, proof.signature, nonce=nonce, client_id=own.id, expected_id=self.node_id
            ):
                what = f"{self.address} could not prove that it holds the key of its id."
                raise Unreachable(what, peer_pb2.CODE_IDENTITY)
            self._proven = asyncio.ensure_future(_stays(self._channels[1]))

    async def _renew(self) -> None:
        """Uses the newest certificate, if this link has an older one and nothing is under way."""
        if self._identity is not self._transport.identity and not self._calls:
            older, proven = self._channels, self._proven
            self._connect()
            await _close(older, proven)

    def cancel(self) -> None:
        """Ends every open call of this link."""
        for call in tuple(self._calls):
            call.cancel()

    async def close(self) -> None:
        self._transport.forget(self)
        self.cancel()
        await _close(self._channels, self._proven)

    @asynccontextmanager
    async def _following(self, start: Callable[[], C]) -> AsyncIterator[C]:
        """Starts a call and turns whatever the network does to it into `Unreachable`; it ends with
        the block.
        """
        if self._transport.revoked(self.node_id):
            raise Unreachable(f"The node at {self.address} was revoked.", peer_pb2.CODE_IDENTITY)
        await self._renew()
        try:
            call = start()
        except grpc.aio.UsageError:
            raise Unreachable(f"The link to {self.address} is closed.") from None
        self._calls.add(call)
        try:
            yield call
        except grpc.aio.AioRpcError as error:
            ready = grpc.ChannelConnectivity.READY
            connected = any(channel.get_state() is ready for channel in self._channels)
            raise await _unreachable(self.address, error, connected=connected) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unreachable(f"The link to {self.address} was closed.") from None
        finally:
            self._calls.discard(call)
            call.cancel()


async def _stays(channel: grpc.aio.Channel) -> None:
    """Until the channel's connection is another one, or none."""
    ready = grpc.ChannelConnectivity.READY
    if channel.get_state() is ready:
        await channel.wait_for_state_change(ready)


async def _close(channels: Sequence[grpc.aio.Channel], proven: asyncio.Task[None] | None) -> None:
    if proven is not None:
        proven.cancel()
        await asyncio.wait([proven])
    for channel in channels:
        await channel.close()


async def _send(call: Bulk, messages: AsyncIterable[bytes]) -> bool:
    """Writes until the end (True), or until the call is over: why, the reading side says."""
    iterator = aiter(messages)
    try:
        async for message in iterator:
            await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    finally:
        if hasattr(iterator, "aclose"):
            await iterator.aclose()
    return True


async def _unreachable(
    address: str, error: grpc.aio.AioRpcError, *, connected: bool
) -> Unreachable:
    """One sentence, as far as grpc's words tell; they decide the wording only. Where they don't
    tell, the address is tried: what a firewall does is no fault of TLS.
    """
    code, details = error.code(), printable(error.details() or "")
    if code in CODES:
        return Unreachable(f"{address} refused the call: {details}", CODES[code])
    late = code is grpc.StatusCode.DEADLINE_EXCEEDED
    if late and connected:
        what = f"{address} gave no answer in time; its daemon is starting, or very busy."
        return Unreachable(what)
    if "onnection refused" in details:
        return Unreachable(f"Nobody listens at {address}.")
    if "not in peer certificate" in details or "Hostname" in details:
        what = f"{address} showed the certificate of another node."
        return Unreachable(what, peer_pb2.CODE_IDENTITY)
    if "WRONG_VERSION_NUMBER" in details:
        return Unreachable(f"What listens at {address} is no daemon of ours: it speaks no TLS.")
    if "SSL" in details:
        what = f"{address} and this node do not accept each other's certificate or TLS version."
        return Unreachable(what, peer_pb2.CODE_IDENTITY)
    if why := await why_unreachable(address):
        return Unreachable(why)
    if late:
        what = f"{address} takes connections, but gave no answer in time: what listens there?"
        return Unreachable(what)
    if "Socket closed" in details or "reset by peer" in details:
        return Unreachable(
            f"{address} closes connections at once: something else listens there, or a firewall or "
            "proxy is between."
        )
    return Unreachable(f"The connection to {address} failed ({details}).")
