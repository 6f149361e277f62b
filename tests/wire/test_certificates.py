"""Who may call whom: a bad certificate is refused before a handler sees a byte, by the listener and
by the dialler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kit.wire import (
    SECONDS,
    Federation,
    Forgery,
    Recorder,
    Sender,
    name_of,
    new_key,
    nothing_left,
    some,
    until,
)
from peer.errors import IdentityError, Refused, TemporaryFailure, Unreachable
from peer.identity import keys
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity, verify_welcome
from peer.transport.grpc import Grpc
from peer.transport.grpc import link as wire
from peer.v1 import peer_pb2


def other_ca(federation: Federation, folder: Path) -> Identity:
    """A stranger who even pins our CA."""
    stranger = CertificateAuthority.create(folder / "stranger")
    key = new_key()
    return Forgery(stranger, key, (name_of(key),)).of(federation.bob)


def expired(federation: Federation, _: Path) -> Identity:
    key = new_key()
    start, end = timedelta(days=-9), timedelta(seconds=-60)
    return Forgery(federation.ca, key, (name_of(key),), start=start, end=end).of(federation.bob)


def not_yet_valid(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), start=timedelta(hours=1)).of(federation.bob)


def another_keys_name(federation: Federation, _: Path) -> Identity:
    """The right CA, a careless one: carol's name on another key."""
    return Forgery(federation.ca, new_key(), (f"{federation.carol.id}.peerpoise",)).of(
        federation.bob
    )


def two_names(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key), f"{federation.carol.id}.peerpoise")).of(
        federation.bob
    )


def no_name(federation: Federation, _: Path) -> Identity:
    return Forgery(federation.ca, new_key(), ()).of(federation.bob)


def wrong_usage(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), (ExtendedKeyUsageOID.CODE_SIGNING,)).of(
        federation.bob
    )


def self_signed(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), self_signed=True).of(federation.bob)


def swapped_key(federation: Federation, _: Path) -> Identity:
    """Bob's certificate, which anybody may have seen, without bob's key."""
    thief = new_key()
    return replace(
        Forgery(federation.ca, thief, ()).of(federation.bob),
        certificate_pem=federation.bob.certificate_pem,
    )


def through_an_intermediate(federation: Federation, _: Path) -> Identity:
    """The federation's CA certified another one, which certified a node and hands both certificates
    over.
    """
    middle = Forgery(federation.ca, new_key(), (), (), authority=True, subject=MIDDLE)
    key = new_key()
    leaf = Forgery(
        CertificateAuthority(middle.key, x509.load_pem_x509_certificate(middle.pem)),
        key,
        (name_of(key),),
    )
    return replace(leaf.of(federation.bob), certificate_pem=leaf.pem + middle.pem)


def an_authority_itself(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), authority=True).of(federation.bob)


def no_usage(federation: Federation, _: Path) -> Identity:
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), ()).of(federation.bob)


def one_usage(federation: Federation, _: Path) -> Identity:
    """TLS lets a client pass with it."""
    key = new_key()
    return Forgery(federation.ca, key, (name_of(key),), (ExtendedKeyUsageOID.CLIENT_AUTH,)).of(
        federation.bob
    )


MIDDLE = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "middle")])
Making = Callable[[Federation, Path], Identity]
ONLY_OURS: list[Making] = [through_an_intermediate, an_authority_itself, no_usage, one_usage]
"""Chains that TLS takes, and no CA of ours makes."""
BAD: list[Making] = [
    other_ca,
    expired,
    not_yet_valid,
    another_keys_name,
    two_names,
    no_name,
    wrong_usage,
    self_signed,
    swapped_key,
]


async def refused(link: object, service: Recorder) -> Unreachable:
    """Both kinds of call fail, and the service never hears of them."""
    with pytest.raises(Unreachable):
        await link.transfer(some(b"header"))  # type: ignore[attr-defined]
    with pytest.raises(Unreachable) as caught:
        await link.call("Beat", b"hello", SECONDS)  # type: ignore[attr-defined]
    assert not service.calls
    assert not service.callers
    return caught.value


@pytest.mark.parametrize("make", BAD + ONLY_OURS, ids=lambda make: make.__name__)
async def test_a_listener_refuses_a_dialler_with(
    make: Making, federation: Federation, tmp_path: Path
) -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        link = Grpc(make(federation, tmp_path), "127.0.0.1:0").link(federation.alice.id, address)
        await refused(link, service)
        good = Grpc(federation.bob, "127.0.0.1:0").link(federation.alice.id, address)
        assert await good.call("Beat", b"good", SECONDS) == b"answer to good"
        assert service.calls[-1][0] == federation.bob.id
        await link.close()
        await good.close()
        await listener.close(0)


@pytest.mark.parametrize(
    "make", [m for m in BAD if m not in (two_names, swapped_key)], ids=lambda make: make.__name__
)
async def test_a_dialler_refuses_a_listener_with(
    make: Making, federation: Federation, tmp_path: Path
) -> None:
    async with nothing_left():
        forged, service = make(federation, tmp_path), Recorder.open()
        listener = Grpc(forged, "127.0.0.1:0")
        address = await listener.serve(service)
        link = Grpc(federation.bob, "127.0.0.1:0").link(forged.id, address)
        await refused(link, service)
        await link.close()
        await listener.close(0)


async def test_nobody_can_even_listen_with_a_swapped_key(
    federation: Federation, tmp_path: Path
) -> None:
    async with nothing_left():
        with pytest.raises(TemporaryFailure, match="can't be listened on"):
            await Grpc(swapped_key(federation, tmp_path), "127.0.0.1:0").serve(Recorder.open())


@pytest.mark.parametrize("make", [another_keys_name, two_names], ids=lambda make: make.__name__)
async def test_what_tls_lets_a_listener_pass_with_fails_in_the_handshakes_signature(
    make: Making, federation: Federation, tmp_path: Path
) -> None:
    """grpc compares names only and shows the dialler no certificate: carol's name on another key
    gets an answer, so that answer has to carry a proof, and the forger can give neither carol's key
    nor her signature."""
    async with nothing_left():
        forged, carol, nonce = make(federation, tmp_path), federation.carol.id, bytes(range(32))
        listener = Grpc(forged, "127.0.0.1:0")
        link = Grpc(federation.bob, "127.0.0.1:0").link(
            carol, await listener.serve(Recorder.open())
        )
        assert await link.call("Handshake", b"hello", SECONDS) == b"answer to hello"
        signature = forged.sign_welcome(nonce, federation.bob.id, carol, "run")
        for shown in (forged.spki, federation.carol.spki):
            with pytest.raises(Refused) as caught:
                verify_welcome(
                    shown,
                    signature,
                    nonce=nonce,
                    client_id=federation.bob.id,
                    run="run",
                    expected_id=carol,
                )
            assert caught.value.code == peer_pb2.CODE_IDENTITY
        await link.close()
        await listener.close(0)


@pytest.mark.parametrize("make", [another_keys_name, two_names], ids=lambda make: make.__name__)
async def test_nothing_is_sent_on_a_connection_of_bulk_before_its_key_is_proved(
    make: Making, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nothing_left():
        forged, service, sender = make(federation, tmp_path), Recorder.open(), Sender(3)
        listener = Grpc(forged, "127.0.0.1:0")
        link = Grpc(federation.bob, "127.0.0.1:0").link(
            federation.carol.id, await listener.serve(service)
        )
        with pytest.raises(Unreachable, match="could not prove that it holds the key") as caught:
            await link.transfer(sender())
        assert caught.value.code == peer_pb2.CODE_IDENTITY
        assert sender.asked == len(service.callers) == 0
        monkeypatch.setattr(
            wire, "verify_connection", lambda *_, **__: True
        )  # power: TLS alone lets it pass
        assert await link.transfer(sender()) == sender.digest
        await link.close()
        await listener.close(0)


async def test_a_connection_of_bulk_that_is_made_anew_is_proved_anew(
    federation: Federation, tmp_path: Path
) -> None:
    async with nothing_left():
        honest = Grpc(federation.carol, "127.0.0.1:0")
        address = await honest.serve(Recorder.open())
        link = Grpc(federation.bob, "127.0.0.1:0").link(federation.carol.id, address)
        assert await link.transfer(Sender(1)())
        await honest.close(0)
        forged, service = Grpc(another_keys_name(federation, tmp_path), address), Recorder.open()
        await forged.serve(service)
        proven = link._proven
        assert proven is not None
        await until(proven.done)
        said = ""
        while "could not prove" not in said:  # until it is dialed again
            with pytest.raises(Unreachable) as caught:
                await link.transfer(Sender(1)())
            said = str(caught.value)
        assert not service.callers
        await link.close()
        await forged.close(0)


async def test_a_dialler_refuses_the_right_federations_wrong_node(federation: Federation) -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(federation.carol, "127.0.0.1:0")
        address = await listener.serve(service)
        link = Grpc(federation.bob, "127.0.0.1:0").link(federation.alice.id, address)
        error = await refused(link, service)
        assert error.code == peer_pb2.CODE_IDENTITY
        assert "certificate of another node" in str(error)
        await link.close()
        await listener.close(0)


async def test_a_listener_refuses_a_dialler_without_a_certificate(federation: Federation) -> None:
    """In clear, and with TLS that shows none."""
    import grpc

    async with nothing_left():
        service, listener = Recorder.open(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        clear = Grpc(None, "127.0.0.1:0").link(federation.alice.id, address)
        await refused(clear, service)
        credentials = grpc.ssl_channel_credentials(federation.ca.pem)
        options = [("grpc.ssl_target_name_override", f"{federation.alice.id}.peerpoise")]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            beat: Any = channel.unary_unary("/peerpoise.peer.v1.Peer/Beat")
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.aio.AioRpcError):
                await beat(b"hello", timeout=SECONDS)
            with pytest.raises(grpc.aio.AioRpcError):
                await check(b"", timeout=SECONDS)
        assert not service.calls
        await clear.close()
        await listener.close(0)


async def test_a_dialler_refuses_a_listener_without_a_certificate(federation: Federation) -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(None, "127.0.0.1:0")
        address = await listener.serve(service)
        link = Grpc(federation.bob, "127.0.0.1:0").link(federation.alice.id, address)
        await refused(link, service)
        await link.close()
        await listener.close(0)


async def test_the_caller_is_who_the_key_says_whatever_the_message_says(
    federation: Federation,
) -> None:
    """The session compares the header's sender with this."""
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        link = Grpc(federation.bob, "127.0.0.1:0").link(federation.alice.id, address)
        await link.call("Beat", f"I am {federation.carol.id}".encode(), SECONDS)
        await link.transfer(some(federation.carol.id.encode()))
        assert service.calls[-1][0] == service.callers[-1] == federation.bob.id
        await link.close()
        await listener.close(0)


async def test_the_check_of_the_key_is_what_catches_a_careless_ca(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power: without it, TLS alone lets carol's name on another key pass."""
    monkeypatch.setattr(Grpc, "_identify", lambda self, pem: "nobody asked")
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        forged = another_keys_name(federation, tmp_path)
        link = Grpc(forged, "127.0.0.1:0").link(federation.alice.id, address)
        assert await link.call("Beat", b"", SECONDS)
        await link.close()
        await listener.close(0)


@pytest.mark.parametrize("make", ONLY_OURS, ids=lambda make: make.__name__)
async def test_power_tls_alone_takes(
    make: Making, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "is_issued_by", lambda *_: True)
    monkeypatch.setattr(keys, "is_leaf", lambda *_: True)
    async with nothing_left():
        listener = Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(Recorder.open())
        link = Grpc(make(federation, tmp_path), "127.0.0.1:0").link(federation.alice.id, address)
        assert await link.call("Beat", b"", SECONDS)
        await link.close()
        await listener.close(0)


async def test_revoking_aborts_what_is_open_and_refuses_what_is_new(federation: Federation) -> None:
    async with nothing_left():
        service, listener = Recorder(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        bad, good = (
            Grpc(who, "127.0.0.1:0").link(federation.alice.id, address)
            for who in (federation.bob, federation.carol)
        )
        open_calls = [asyncio.ensure_future(link.transfer(Sender(64)())) for link in (bad, good)]
        open_calls += [
            asyncio.ensure_future(link.call("Beat", b"wait", SECONDS)) for link in (bad, good)
        ]
        await until(lambda: len(service.callers) == 2 == len(service.calls))
        listener.revoke(federation.bob.id)
        for broken in open_calls[::2]:
            with pytest.raises(Unreachable, match="revoked") as caught:
                await asyncio.wait_for(broken, 5)
            assert caught.value.code == peer_pb2.CODE_IDENTITY
        calls = len(service.calls)
        with pytest.raises(Unreachable, match="revoked"):
            await bad.call("Beat", b"again", SECONDS)
        with pytest.raises(Unreachable, match="revoked"):
            await bad.transfer(some(b"again"))
        assert len(service.calls) == calls
        service.gate.set()
        assert await asyncio.gather(*open_calls[1::2]) == [Sender(64).digest, b"answer to wait"]
        await bad.close()
        await good.close()
        await listener.close(0)


async def test_a_revoked_node_is_not_dialed_either(federation: Federation) -> None:
    async with nothing_left():
        service, listener = Recorder(), Grpc(federation.alice, "127.0.0.1:0")
        address = await listener.serve(service)
        dialler = Grpc(federation.bob, "127.0.0.1:0")
        link = dialler.link(federation.alice.id, address)
        call = asyncio.ensure_future(link.call("Beat", b"wait", SECONDS))
        await until(lambda: bool(service.calls))
        dialler.revoke(federation.alice.id)
        with pytest.raises(Unreachable):
            await asyncio.wait_for(call, 5)
        with pytest.raises(Unreachable, match="revoked"):
            await link.call("Beat", b"", SECONDS)
        await link.close()
        await listener.close(0)


async def test_a_new_certificate_is_used_for_new_connections(
    federation: Federation, tmp_path: Path
) -> None:
    """The listener starts with one that has expired, and comes into its own without a restart."""
    async with nothing_left():
        key = keys.load_key(_written(tmp_path, federation.alice.key_pem))
        start, end = timedelta(days=-9), timedelta(days=-1)
        old = Forgery(federation.ca, key, (name_of(key),), start=start, end=end).of(
            federation.alice
        )
        service, listener = Recorder.open(), Grpc(old, "127.0.0.1:0")
        address = await listener.serve(service)
        dialler = Grpc(federation.bob, "127.0.0.1:0", reconnect=(0.1, 0.1))
        first = dialler.link(federation.alice.id, address)
        await refused(first, service)
        listener.rotate(federation.alice)
        second = dialler.link(federation.alice.id, address)
        assert await second.call("Beat", b"new", SECONDS) == b"answer to new"
        with pytest.raises(IdentityError, match="can't change its identity"):
            listener.rotate(federation.bob)
        await first.close()
        await second.close()
        await listener.close(0)


def _written(folder: Path, pem: bytes) -> Path:
    path = folder / "node.key"
    path.write_bytes(pem)
    path.chmod(0o600)
    return path
