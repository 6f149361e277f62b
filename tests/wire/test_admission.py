"""Token buckets, and how a connection is cut."""

from __future__ import annotations

import socket

import pytest

from peer.transport.admission import BURST, HANGING, PER_SECOND, Bucket
from peer.transport.sockets import cut


def test_a_bucket_has_its_burst_then_its_rate_then_nothing() -> None:
    bucket = Bucket()
    assert [bucket.take(0.0) for _ in range(BURST)] == pytest.approx([0.0] * BURST)
    waits = [bucket.take(0.0) for _ in range(HANGING - 1)]
    assert all(wait is not None and wait > 0 for wait in waits)
    assert waits == sorted(waits, key=float)  # type: ignore[arg-type]
    while bucket.take(0.0) is not None:
        pass
    assert bucket.take(1.0) is not None, "tokens come back"
    assert sum(bucket.take(1.0) is not None for _ in range(BURST)) <= PER_SECOND


def test_what_was_of_use_costs_nothing() -> None:
    bucket = Bucket()
    for _ in range(10 * BURST):
        assert bucket.take(0.0) == 0.0
        bucket.give_back()


def test_a_connection_is_cut_and_no_other() -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.create_server(("127.0.0.1", 0)) as four,
    ):
        for listener, name in ((six, "ipv6:%5B::1%5D"), (four, "ipv4:127.0.0.1")):
            ours, others = (
                socket.create_connection(listener.getsockname()[:2], 5) for _ in range(2)
            )
            ends = [listener.accept()[0] for _ in range(2)]
            with ours, others, ends[0], ends[1]:
                port = listener.getsockname()[1]
                assert cut([f"{name}:{port ^ 1}"], port) == 0
                assert cut([f"{name}:{ours.getsockname()[1]}"], port ^ 1) == 0, "to that port only"
                assert cut([f"{name}:{port}"], port) == 0, "not what this process made itself"
                assert cut([f"{name}:{ours.getsockname()[1]}"], port) == 1
                assert ours.recv(1) == b""
                ends[1].send(b"x")
                assert others.recv(1) == b"x"
    for odd in ("", "unix:/tmp/x", "ipv4:nowhere:1", "ipv4:127.0.0.1:"):
        assert cut([odd], 1) == 0
