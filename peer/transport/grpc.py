"""Bytes over gRPC on one mutually authenticated TLS 1.3 port; the only file that meets grpc.

Frames are raw bytes on a generic stream-stream method, written and read one at a time, so
back-pressure is true: a writer gets no further than two or three frames ahead of a reader that
stopped. Each link has two connections, or control messages would wait behind bulk.

A listener admits a call in this order: TLS 1.3 with a certificate of the federation, SHA-256(key)
== the certificate's only name, a token of its caller's bucket (admission.py), a member of the
roster, not revoked, within its caller's quota of open calls; only then is anything read. The
dialling side is shown no certificate by grpc: TLS checks chain and name there, the handshake's
signature checks the key (session.py); the connection of bulk is asked for a signature of its own
before anything is sent on it, and again whenever it was reconnected.

Strangers can hold connections, at most CONNECTIONS, for HANDSHAKE_SECONDS each; further ones are
closed as they come.

Not covered: a certificate that expires stays usable on connections made before; grpc doesn't tell
of TLS handshakes that failed; whoever has a certificate of the CA, be it a removed member, costs a
TLS handshake and a look at its headers per connection, however often it comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import socket
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeAlias, TypeVar, get_args

from google.protobuf.message import DecodeError

from peer.codec import DIGEST, MAX_MESSAGE, printable
from peer.codec import sentence as sentence_of
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, IdentityError, Malformed, TemporaryFailure, Unreachable
from peer.identity.keys import DOMAIN, Identity, member_id, verify_connection
from peer.transport import Method, Service
from peer.transport.admission import STRANGER, Admission
from peer.transport.sockets import cut, why_unreachable
from peer.v1 import peer_pb2

CIPHERS = "ECDHE-PSK-AES128-CBC-SHA"
"""grpc has no switch for the TLS version. This one suite of TLS 1.2 fits no certificate, so 1.2
can't be negotiated, while the suites of 1.3 are not affected. grpc reads it once: it has to stand
before the first import."""

if "grpc" in sys.modules and os.environ.get("GRPC_SSL_CIPHER_SUITES") != CIPHERS:
    raise ConfigurationError(
        "grpc was imported before peer.transport.grpc, which must first forbid it TLS 1.2."
    )
os.environ["GRPC_SSL_CIPHER_SUITES"] = CIPHERS
os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # failed handshakes reach people as sentences, not as C++ log lines

import grpc  # noqa: E402
import grpc.aio  # noqa: E402
from grpc_health.v1 import health, health_pb2  # noqa: E402

SERVICE = "peerpoise.peer.v1.Peer"
METHODS: tuple[Method, ...] = get_args(Method)
CALLS_PER_PEER = 8
"""Open control calls of one identity; a well-behaved one has a beat and now and then a
handshake.
"""
TRANSFERS_PER_PEER = 8
"""Open transfers of one identity: what a round keeps in flight on an edge, twice over."""
STREAMS_PER_CONNECTION = 16
"""Calls that one connection may have open at the listener; further ones wait at the sender."""
CONNECTIONS = 1024
"""Connections that others may have to this listener at a time, if that is at most a quarter of the
descriptors that this process may have: a neighbor has two. More are closed as they come. A silent
one costs some 70 KiB."""
HANDSHAKE_SECONDS = 2.0
"""How long a new connection has to prove itself: a stranger holds one of CONNECTIONS so long."""
CUT_AFTER = 1.0
"""Seconds until a connection is cut, in which its other end can read why."""
OVERFLOW_SECONDS = 5.0
"""How long a call of somebody who calls too often hangs, unless its connection is cut before."""
METADATA = 4096
"""Bytes of headers that a call may have; an honest one has some 300."""
REQUEST_SECONDS = 10.0
"""How long a control call may take to deliver its few bytes after it was admitted."""
WINDOW = 2 << 20
"""Bytes a writer may be ahead of its reader, two frames. grpc's own adaptive window costs 5 to 31
MiB per stalled transfer on loopback and is no faster there; over a long fat line (more than 2 MiB
of bandwidth × delay) raise it."""
CONNECT_SECONDS = 10.0
"""How long one attempt to connect may take, TLS handshake on a busy machine included."""

REVOKED = "This node was revoked."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Bulk: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
C = TypeVar("C", bound="grpc.aio.Call")

_log = logging.getLogger(__name__)


def common_options(window: int) -> list[tuple[str, object]]:
    """What both ends set: message limits, no compression (noise does not shrink, bombs grow), no
    hidden retries.
    """
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window),
    ]


def server_options(
    keepalive: float, handshake: float, window: int = WINDOW
) -> list[tuple[str, object]]:
    """Half the client's interval is tolerated, so that clocks and jitter never look like "too many
    pings".
    """
    return [
        *common_options(window),
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.http.overload_protection", 1),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.server_handshake_timeout_ms", int(handshake * 1000)),
        ("grpc.max_metadata_size", METADATA),
        ("grpc.absolute_max_metadata_size", METADATA),
        ("grpc.http2.min_ping_interval_without_data_ms", int(keepalive * 500)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive * 500)),
    ]


def most_connections() -> int:
    """CONNECTIONS, or fewer where descriptors are few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else min(CONNECTIONS, soft // 4)


def client_options(
    keepalive: float, reconnect: tuple[float, float], node_id: str, window: int = WINDOW
) -> list[tuple[str, object]]:
    """Every channel has a connection of its own and expects the certificate of exactly
    `node_id`.
    """
    return [
        *common_options(window),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive * 500)),
        ("grpc.initial_reconnect_backoff_ms", int(reconnect[0] * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(reconnect[1] * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
        ("grpc.ssl_target_name_override", f"{node_id}.{DOMAIN}"),
    ]


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
        self.refused(caller, _CODES[status])
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


class GrpcLink:
    """Implements `peer.transport.Link`: one connection for control, one for bulk."""

    def __init__(self, transport: Grpc, node_id: str, address: str) -> None:
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


_CODES = {
    grpc.StatusCode.PERMISSION_DENIED: peer_pb2.CODE_IDENTITY,
    grpc.StatusCode.UNAUTHENTICATED: peer_pb2.CODE_IDENTITY,
    grpc.StatusCode.INVALID_ARGUMENT: peer_pb2.CODE_MALFORMED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: peer_pb2.CODE_BUSY,
}


async def _unreachable(
    address: str, error: grpc.aio.AioRpcError, *, connected: bool
) -> Unreachable:
    """One sentence, as far as grpc's words tell; they decide the wording only. Where they don't
    tell, the address is tried: what a firewall does is no fault of TLS.
    """
    code, details = error.code(), printable(error.details() or "")
    if code in _CODES:
        return Unreachable(f"{address} refused the call: {details}", _CODES[code])
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
