"""The port: who is admitted to it, and what becomes of calls. `Grpc` is the transport."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from peer.codec import DIGEST, printable
from peer.codec import sentence as sentence_of
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, IdentityError, Malformed, TemporaryFailure
from peer.identity.keys import Identity, member_id
from peer.transport import Method, Service
from peer.transport.admission import STRANGER, Admission
from peer.transport.grpc.link import GrpcLink
from peer.transport.grpc.options import (
    CALLS_PER_PEER,
    CODES,
    CONNECTIONS,
    CUT_AFTER,
    HANDSHAKE_SECONDS,
    METHODS,
    OVERFLOW_SECONDS,
    REQUEST_SECONDS,
    SERVICE,
    TRANSFERS_PER_PEER,
    WINDOW,
    client_options,
    server_options,
)
from peer.transport.sockets import cut
from peer.v1 import peer_pb2

REVOKED = "This node was revoked."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_log = logging.getLogger(__name__)


class Grpc:
    """Implements `peer.transport.Transport`. Without an identity it is insecure: no encryption,
    callers are None.

    `listen` is "host:port" (port 0: a free one). `keepalive` is in seconds, at least 20 (NATs
    forget idle connections, peers answer faster pings with "too many pings"); `reconnect` is the
    back-off in seconds, (first, longest); `handshake` is how many seconds a new connection has to
    prove itself, `request` how many a control call has to deliver its few bytes; `window` is in
    bytes. `members` are the ids that may call, by default all that have a certificate of the CA.

    Raises:
        ConfigurationError: `listen` is no address, or keepalive is below 20.
    """

    def __init__(
        self,
        identity: Identity | None,
        listen: str,
        *,
        max_neighbors: int = 64,
        keepalive: float = 25.0,
        reconnect: tuple[float, float] = (0.1, 1.0),
        handshake: float = HANDSHAKE_SECONDS,
        window: int = WINDOW,
        request: float = REQUEST_SECONDS,
        transfers_per_peer: int = TRANSFERS_PER_PEER,
        members: Collection[str] | None = None,
    ) -> None:
        if keepalive < 20:
            raise ConfigurationError(
                "keepalive must be at least 20 seconds; peers refuse faster pings."
            )
        self.insecure = identity is None
        self._identity = identity
        self._shown: Identity | None = None
        """Whose certificate grpc has."""
        self._host, self._port = endpoint(listen)
        self._listen = listen
        self._keepalive, self._reconnect, self._handshake, self._window = (
            keepalive,
            reconnect,
            handshake,
            window,
        )
        self._rpcs = (max_neighbors + 8) * (CALLS_PER_PEER + transfers_per_peer)
        self._request, self._transfers_per_peer = request, transfers_per_peer
        self._server: grpc.aio.Server | None = None
        self._bound = ""
        self._service: Service
        self._attached = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._open: dict[tuple[str, int], set[asyncio.Task[object]]] = {}
        self._links: set[GrpcLink] = set()
        self._members = None if members is None else frozenset(members)
        self._revoked: set[str] = set()
        self._ids: dict[bytes, str] = {}
        self._admission = Admission(lambda caller: self.refused(caller or None, peer_pb2.CODE_BUSY))
        self.refused: Callable[[str | None, int], None] = lambda caller, code: None
        """Told of every call that is refused, or hangs: whose it is (None: nobody of the roster),
        the wire's code.
        """
        self.connections = 0
        """TLS handshakes that were begun with this listener."""
        self.connections_used = 0
        """Those of them on which anybody with a certificate ever called."""
        self._due: set[str] = set()
        """Other ends of connections that are about to be cut."""
        self._callers: dict[str, str] = {}
        """The other ends of the newest of them, and which member is there (empty: none)."""

    async def serve(self, service: Service) -> str:
        """Starts listening, unless `listen` has, and gives all calls to `service`; returns the
        bound "host:port".

        Raises:
            TemporaryFailure: the port is taken.
            ConfigurationError: this machine has no such address, or the port is reserved.
        """
        self._service = service
        self._attached.set()
        return await self.listen()

    async def listen(self) -> str:
        """Opens the port: health is answered from now on (NOT_SERVING until told otherwise), calls
        wait for `serve`.

        Raises as `serve`.
        """
        if self._server is not None:
            return self._bound
        await self.set_serving(False)
        options = server_options(self._keepalive, self._handshake, self._window)
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=self._rpcs)
        self._register(server)
        try:
            port = self._bind(server)
        except RuntimeError:
            await server.stop(None)
            self._explain()
            raise TemporaryFailure(
                f"{self._listen} can't be listened on; try again or choose another."
            ) from None
        self._server, self._bound = server, f"{self._listen.rpartition(':')[0]}:{port}"
        await server.start()
        return self._bound

    def link(self, node_id: str, address: str) -> GrpcLink:
        """A link to the node with this id at this address; dials lazily and re-dials by itself.

        Raises:
            ConfigurationError: `address` is none.
        """
        endpoint(address)
        link = GrpcLink(self, node_id, address)
        self._links.add(link)
        return link

    async def close(self, grace: float) -> None:
        """Stops listening; open calls get `grace` seconds, then are aborted. Links are closed by
        who made them.
        """
        server, self._server = self._server, None
        if server is not None:
            await self.set_serving(False)
            await server.stop(grace)

    async def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 answers from now on."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def rotate(self, identity: Identity) -> None:
        """Uses a newer certificate of the same id: for new connections, at once for incoming ones,
        and for those of a link when nothing is under way on it.

        Raises:
            IdentityError: another id, or this transport has no identity.
        """
        if self._identity is None or identity.id != self._identity.id:
            raise IdentityError("A running node can't change its identity; stop it first.")
        self._identity = identity
        self._ids.clear()  # another CA may not have issued them

    def revoke(self, node_id: str) -> None:
        """Aborts every open call from and to this id, refuses new ones, and cuts its connections
        when it could read why."""
        self._revoked.add(node_id)
        for (caller, _), tasks in self._open.items():
            if caller == node_id:
                for task in tasks:
                    task.cancel()
        for link in self._links:
            if link.node_id == node_id:
                link.cancel()
        self._cut_soon(
            other_end for other_end, caller in self._callers.items() if caller == node_id
        )

    def _bind(self, server: grpc.aio.Server) -> int:
        if self._identity is None:
            return server.add_insecure_port(self._listen)
        changed: Any = self._changed_certificate  # its types don't know of None
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificate(), changed, require_client_authentication=True
        )
        return server.add_secure_port(self._listen, credentials)

    def _changed_certificate(self) -> grpc.ServerCertificateConfiguration | None:
        """What grpc asks for at every new connection; None: as before. For a new one it frees what
        other threads' handshakes are in the middle of: given at every connection, it crashed under
        any storm of them (grpc 1.85.1)."""
        self.connections += 1
        return None if self._shown is self._identity else self._certificate()

    def _certificate(self) -> grpc.ServerCertificateConfiguration:
        assert self._identity is not None
        self._shown = self._identity
        pair = (self._identity.key_pem, self._identity.certificate_pem)
        return grpc.ssl_server_certificate_configuration(
            [pair], root_certificates=self._identity.ca_pem
        )

    def _explain(self) -> None:
        """Raises what the operating system says about binding to `listen`, if it still says so."""
        try:
            family, _, _, _, where = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind(where)
                probe.listen()
        except socket.gaierror:
            raise ConfigurationError(
                f"{self._listen}: this machine can't find that host name."
            ) from None
        except PermissionError:
            raise ConfigurationError(
                f"{self._listen}: this user may not listen there; use a port ≥ 1024."
            ) from None
        except OSError as error:
            if error.errno == 98 or error.errno == 48:
                raise TemporaryFailure(
                    f"{self._listen} is taken by another process; stop it or choose another."
                ) from None
            raise ConfigurationError(
                f"{self._listen} can't be listened on: {error.strerror}."
            ) from None

    @property
    def identity(self) -> Identity | None:
        return self._identity

    def channel(self, node_id: str, address: str) -> grpc.aio.Channel:
        """A new connection-to-be."""
        options = client_options(self._keepalive, self._reconnect, node_id, self._window)
        if self._identity is None:
            return grpc.aio.insecure_channel(f"dns:///{address}", options=options)
        own = self._identity
        credentials = grpc.ssl_channel_credentials(own.ca_pem, own.key_pem, own.certificate_pem)
        return grpc.aio.secure_channel(f"dns:///{address}", credentials, options=options)

    def forget(self, link: GrpcLink) -> None:
        self._links.discard(link)

    def revoked(self, node_id: str | None) -> bool:
        return node_id in self._revoked

    # what arrives

    def _register(self, server: grpc.aio.Server) -> None:
        """All methods are streams for grpc, so that nothing is read before the caller is admitted,
        and registered by name. A client that never acknowledges our settings is held to none of
        METADATA, and grpc makes Python objects of its headers, up to 16 MiB a call, before we are
        asked."""
        stream = grpc.stream_stream_rpc_method_handler
        own: dict[str, Handler] = {method: stream(self._call(method)) for method in METHODS}
        own["Transfer"], own["Prove"] = stream(self._transfer), stream(self._prove)
        asked, answered = (
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        checks = {
            name: stream(self._check(name == "Watch"), asked, answered)
            for name in ("Check", "Watch")
        }
        server.add_registered_method_handlers(SERVICE, own)
        server.add_registered_method_handlers(health.SERVICE_NAME, checks)
        server.add_generic_rpc_handlers((_Anything(stream(self._unknown)),))

    def _call(self, method: Method) -> Callable[[object, Context], Coroutine[object, object, None]]:
        async def handle(_: object, context: Context) -> None:
            async with self._admitted(context, CALLS_PER_PEER) as caller:
                request = await _only(context, self._request)
                await self._attached.wait()
                await context.write(await self._service.call(caller, method, request))

        return handle

    async def _transfer(self, _: object, context: Context) -> None:
        async with (
            self._admitted(context, self._transfers_per_peer, 1) as caller,
            aclosing(_messages(context)) as messages,
        ):
            await self._attached.wait()
            verdict = await self._service.transfer(caller, messages)
            if (code := _code(verdict)) == peer_pb2.CODE_OK:
                self._admission.give_back(caller or context.peer())
            elif code is not None:
                self.refused(caller, code)
            await context.write(verdict)

    async def _prove(self, _: object, context: Context) -> None:
        async with self._admitted(context, CALLS_PER_PEER) as caller:
            nonce = await _only(context, self._request)
            if self._identity is None or caller is None or len(nonce) != DIGEST:
                raise Malformed("There is nothing to prove.", peer_pb2.CODE_MALFORMED)
            signature = self._identity.sign_connection(nonce, caller)
            await context.write(
                peer_pb2.Proof(spki=self._identity.spki, signature=signature).SerializeToString()
            )

    async def _unknown(self, _: object, context: Context) -> None:
        """What is no method of ours costs its caller a token all the same."""
        async with self._admitted(context, CALLS_PER_PEER):
            raise Malformed("There is no such method.", peer_pb2.CODE_MALFORMED)

    def _check(self, watch: bool) -> Callable[[object, Context], Coroutine[object, object, None]]:
        async def handle(_: object, context: Context) -> None:
            async with self._admitted(context, CALLS_PER_PEER):
                request = await _only(context, self._request)
                if watch:
                    await self._health.Watch(request, context)
                else:
                    await context.write(await self._health.Check(request, context))

        return handle

    @asynccontextmanager
    async def _admitted(
        self, context: Context, quota: int, lane: int = 0
    ) -> AsyncIterator[str | None]:
        """Who calls, if they may; holds their place in the quota, and turns what goes wrong inside
        into a status.
        """
        caller = None if self.insecure else await self._authenticate(context)
        key, task = (caller or context.peer(), lane), asyncio.current_task()
        assert task is not None
        places = self._open.setdefault(key, set())
        if len(places) >= quota:
            await self._refuse(
                context,
                caller,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "Too many calls of this node are open.",
            )
        places.add(task)
        try:
            yield caller
        except asyncio.CancelledError:
            if self.revoked(caller):
                await self._refuse(context, None, grpc.StatusCode.PERMISSION_DENIED, REVOKED)
            raise
        except Malformed as error:
            self.refused(caller, error.code or peer_pb2.CODE_MALFORMED)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, printable(str(error)))
        except grpc.aio.AbortError:
            raise
        except Exception:
            if self._server is not None and not context.done():
                _log.exception("A call could not be served.")
                await context.abort(
                    grpc.StatusCode.INTERNAL, "The call met a fault in the node that was called."
                )
        finally:
            places.discard(task)
            if not places:
                self._open.pop(key, None)

    async def _authenticate(self, context: Context) -> str:
        """The caller's id, from its key and nothing it says, once it has a token; ends the call if
        it may not.
        """
        try:
            caller = self._certified(context)
        except IdentityError as error:
            await self._turn(context, STRANGER)
            await self._refuse(context, None, grpc.StatusCode.UNAUTHENTICATED, str(error))
        if not self._is_member(caller):
            await self._turn(context, STRANGER)
            why = REVOKED if self.revoked(caller) else sentence_of(peer_pb2.CODE_NOT_A_MEMBER)
            await self._refuse(context, None, grpc.StatusCode.PERMISSION_DENIED, why)
        self._callers[context.peer()] = caller
        await self._turn(context, caller)
        if self.revoked(caller):  # meanwhile
            await self._refuse(context, None, grpc.StatusCode.PERMISSION_DENIED, REVOKED)
        return caller

    async def _turn(self, context: Context, caller: str) -> None:
        """Waits for the caller's token; a caller with too many waiting calls is cut off."""
        if not await self._admission.wait(caller):
            self._cut_soon([context.peer()])
            await asyncio.sleep(OVERFLOW_SECONDS)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "This node calls too often.")

    def _cut_soon(self, other_ends: Iterable[str]) -> None:
        """Cuts these connections, and those of others who are due, after they could read why. One
        look for all, as a member can have many."""
        if not self._due:
            asyncio.get_running_loop().call_later(CUT_AFTER, self._cut_due)
        self._due.update(other_ends)

    def _cut_due(self) -> None:
        due, self._due = self._due, set()
        cut(due, endpoint(self._bound)[1])

    def _is_member(self, node_id: str) -> bool:
        return (self._members is None or node_id in self._members) and not self.revoked(node_id)

    def _certified(self, context: Context) -> str:
        """Raises IdentityError: another TLS than 1.3, or no certificate as ours are."""
        shown = context.auth_context()
        if list(shown.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
            raise IdentityError("TLS 1.3 is required.")
        pem = next(iter(shown.get("x509_pem_cert", ())), b"")
        self._note_connection(context.peer())
        return self._ids.get(pem) or self._identify(pem)

    def _note_connection(self, other_end: str) -> None:
        if other_end not in self._callers:
            self._callers[other_end] = STRANGER
            self.connections_used += 1
        if len(self._callers) > 4 * CONNECTIONS:
            del self._callers[next(iter(self._callers))]

    async def _refuse(
        self, context: Context, caller: str | None, status: grpc.StatusCode, why: str
    ) -> NoReturn:
        self.refused(caller, CODES[status])
        await context.abort(status, why)
        raise AssertionError("abort raises")

    def _identify(self, pem: bytes) -> str:
        assert self._identity is not None
        own = member_id(pem, self._identity.ca_pem)
        if len(self._ids) >= 4096:
            self._ids.clear()
        self._ids[pem] = own
        return own


class _Anything(grpc.GenericRpcHandler):
    """Whatever is called: grpc would answer what it doesn't know by itself, as often as it is
    asked.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        return self._handler


def _code(verdict: bytes) -> int | None:
    """A verdict's code; None: it is none."""
    try:
        return int(peer_pb2.Verdict.FromString(verdict).code)
    except DecodeError:
        return None


async def _only(context: Context, seconds: float) -> Any:
    """The one message of a control call, which has so long to come."""
    try:
        async with asyncio.timeout(seconds):
            request = await context.read()
    except TimeoutError:
        raise Malformed("The call's message did not come.") from None
    if request is grpc.aio.EOF:
        raise Malformed("The call has no message.")
    return request


async def _messages(context: Context) -> AsyncGenerator[bytes, None]:
    while (message := await context.read()) is not grpc.aio.EOF:
        yield message
