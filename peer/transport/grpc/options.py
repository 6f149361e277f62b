"""What grpc is told: the limits of both ends of a connection, and how they keep it alive."""

from __future__ import annotations

import resource
from typing import get_args

import grpc

from peer.codec import MAX_MESSAGE
from peer.identity.keys import DOMAIN
from peer.transport import Method
from peer.v1 import peer_pb2

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

CODES = {
    grpc.StatusCode.PERMISSION_DENIED: peer_pb2.CODE_IDENTITY,
    grpc.StatusCode.UNAUTHENTICATED: peer_pb2.CODE_IDENTITY,
    grpc.StatusCode.INVALID_ARGUMENT: peer_pb2.CODE_MALFORMED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: peer_pb2.CODE_BUSY,
}
"""The wire's code for a status with which a call was refused."""


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
