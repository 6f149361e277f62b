"""What every transport promises to the session, whatever it is made of."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from kit.wire import (
    SECONDS,
    Federation,
    Recorder,
    Sender,
    close_all,
    nothing_left,
    settled,
    some,
    until,
)
from peer.codec import FRAME
from peer.errors import TemporaryFailure, Unreachable
from peer.transport import Link, Transport
from peer.transport.grpc import Grpc
from peer.transport.memory import Memory, Network
from peer.v1 import peer_pb2

AHEAD = 5
"""Frames a writer may be ahead: two or three in the transport, the rest in the kernel's loopback
buffers.
"""


@dataclass
class World:
    """A listener (bob) and a way for alice to dial it; `name` is what bob is told of the caller."""

    listener: Callable[[str], Transport]
    dialler: Transport
    name: str | None
    bob: str

    async def serve(
        self, service: Recorder, address: str = "127.0.0.1:0"
    ) -> tuple[Transport, str, Link]:
        transport = self.listener(address)
        bound = await transport.serve(service)
        return transport, bound, self.dialler.link(self.bob, bound)


@pytest.fixture(params=["memory", "grpc", "insecure"])
async def world(request: pytest.FixtureRequest, federation: Federation) -> AsyncIterator[World]:
    alice, bob = federation.alice, federation.bob
    if request.param == "memory":
        network = Network()
        made = World(lambda _: Memory(network, bob.id), Memory(network, alice.id), alice.id, bob.id)
    elif request.param == "grpc":
        made = World(
            lambda at: Grpc(bob, at),
            Grpc(alice, "127.0.0.1:0", reconnect=(0.1, 0.2)),
            alice.id,
            bob.id,
        )
    else:
        made = World(
            lambda at: Grpc(None, at), Grpc(None, "127.0.0.1:0", reconnect=(0.1, 0.2)), None, bob.id
        )
    async with nothing_left():
        yield made
        await close_all()


async def test_calls_carry_bytes_and_the_authenticated_caller(world: World) -> None:
    service = Recorder.open()
    listener, _, link = await world.serve(service)
    for method in ("Handshake", "Beat", "Leave", "Peers"):
        assert await link.call(method, b"\x00\xff" * 9, SECONDS) == b"answer to " + b"\x00\xff" * 9
        assert service.calls[-1] == (world.name, method, b"\x00\xff" * 9)
    assert await link.call("Beat", b"", SECONDS) == b"answer to "
    await link.close()
    await listener.close(0)


async def test_a_transfer_arrives_whole_and_in_order(world: World) -> None:
    service = Recorder.open()
    listener, _, link = await world.serve(service)
    messages = [b"header", bytes(range(256)) * 4096, b"", b"x" * 7, b"trailer"]
    verdict = await link.transfer(some(*messages))
    assert verdict == hashlib.sha256(b"".join(messages)).digest()
    assert service.callers == [world.name]
    await link.close()
    await listener.close(0)


async def test_transfers_and_calls_go_on_side_by_side(world: World) -> None:
    service = Recorder()
    listener, _, link = await world.serve(service)
    transfers = [asyncio.ensure_future(link.transfer(Sender(5)())) for _ in range(4)]
    await until(lambda: len(service.callers) == 4)
    assert await link.call("Beat", b"still", SECONDS) == b"answer to still"
    service.gate.set()
    assert set(await asyncio.gather(*transfers)) == {Sender(5).digest}
    await link.close()
    await listener.close(0)


async def test_a_writer_gets_only_a_few_frames_ahead_of_a_reader(world: World) -> None:
    service, sender = Recorder(), Sender(64)
    listener, _, link = await world.serve(service)
    transfer = asyncio.ensure_future(link.transfer(sender()))
    await service.started.wait()
    assert (await settled(lambda: sender.asked)) * FRAME - service.read <= AHEAD * FRAME
    service.gate.set()
    assert await transfer == sender.digest
    await link.close()
    await listener.close(0)


async def test_an_early_verdict_stops_a_writer_that_is_held_back(world: World) -> None:
    service, sender = Recorder(take=1), Sender(64)
    listener, _, link = await world.serve(service)
    transfer = asyncio.ensure_future(link.transfer(sender()))
    await service.started.wait()
    assert await settled(lambda: sender.asked) <= 1 + AHEAD
    service.gate.set()
    assert await transfer == Sender(1).digest
    assert sender.asked <= 2 + AHEAD, "one may go before the verdict comes"
    assert sender.closed
    await link.close()
    await listener.close(0)


async def test_a_verdict_before_the_first_message_reaches_a_silent_sender(world: World) -> None:
    class Refusing(Recorder):
        async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
            return b"no"

    async def silent() -> AsyncIterator[bytes]:
        yield b"header"
        await asyncio.Event().wait()

    listener, _, link = await world.serve(Refusing())
    assert await link.transfer(silent()) == b"no"
    await link.close()
    await listener.close(0)


async def test_cancelling_a_transfer_ends_it_at_the_receiver(world: World) -> None:
    service, sender = Recorder(), Sender(64)
    listener, _, link = await world.serve(service)
    transfer = asyncio.ensure_future(link.transfer(sender()))
    await service.started.wait()
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    await asyncio.wait_for(service.ended.wait(), SECONDS)
    assert sender.closed
    assert not service.verdicts
    assert await link.call("Beat", b"after", SECONDS) == b"answer to after"
    await link.close()
    await listener.close(0)


async def test_a_senders_own_fault_reaches_the_sender_and_ends_the_transfer(world: World) -> None:
    async def faulty() -> AsyncIterator[bytes]:
        yield b"header"
        raise ZeroDivisionError("mine")

    service = Recorder()
    listener, _, link = await world.serve(service)
    with pytest.raises(ZeroDivisionError, match="mine"):
        await link.transfer(faulty())
    assert await link.call("Beat", b"after", SECONDS) == b"answer to after"
    assert not service.verdicts
    await link.close()
    await listener.close(0)


async def test_malformed_bytes_end_that_call_and_nothing_else(world: World) -> None:
    listener, _, link = await world.serve(Recorder.open())
    with pytest.raises(Unreachable) as caught:
        await link.call("Beat", b"malformed", SECONDS)
    assert caught.value.code == peer_pb2.CODE_MALFORMED
    with pytest.raises(Unreachable) as caught:
        await link.transfer(some(b"header", b"malformed", b"more"))
    assert caught.value.code == peer_pb2.CODE_MALFORMED
    assert await link.call("Beat", b"after", SECONDS) == b"answer to after"
    await link.close()
    await listener.close(0)


async def test_a_fault_in_the_service_costs_that_call_and_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    listener, _, link = await world.serve(Recorder.open())
    for broken in (
        link.call("Beat", b"fault", SECONDS),
        link.transfer(some(b"header", b"fault", b"more")),
    ):
        with caplog.at_level(logging.ERROR), pytest.raises(Unreachable) as caught:
            await broken
        assert "fault" in str(caught.value)
        assert "ZeroDivisionError" not in str(caught.value)
    assert caplog.text.count("could not be served") == 2
    assert await link.call("Beat", b"after", SECONDS) == b"answer to after"
    await link.close()
    await listener.close(0)


async def test_no_answer_in_time_is_unreachable(world: World) -> None:
    listener, _, link = await world.serve(Recorder())
    with pytest.raises(Unreachable, match="no answer in time"):
        await link.call("Beat", b"wait", 0.2)
    await link.close()
    await listener.close(0)


async def test_nobody_there_is_unreachable(world: World) -> None:
    service = Recorder.open()
    listener, _, link = await world.serve(service)
    await listener.close(0)
    with pytest.raises(Unreachable):
        await link.call("Beat", b"hello", SECONDS)
    sender = Sender(64)
    with pytest.raises(Unreachable):
        await link.transfer(sender())
    assert sender.asked < 10
    await link.close()


async def test_a_listener_that_stops_breaks_what_is_open(world: World) -> None:
    service = Recorder()
    listener, _, link = await world.serve(service)
    transfer = asyncio.ensure_future(link.transfer(Sender(64)()))
    call = asyncio.ensure_future(link.call("Beat", b"wait", SECONDS))
    await until(lambda: bool(service.callers and service.calls))
    await listener.close(0)
    for broken in (transfer, call):
        with pytest.raises(Unreachable):
            await broken
    await asyncio.wait_for(service.ended.wait(), SECONDS)
    await link.close()


async def test_a_listener_that_comes_back_is_dialed_again_by_the_same_link(world: World) -> None:
    listener, address, link = await world.serve(Recorder.open())
    await link.call("Beat", b"before", SECONDS)
    await listener.close(0)
    with pytest.raises(Unreachable):
        await link.call("Beat", b"meanwhile", SECONDS)
    again = Recorder.open()
    back = world.listener(address)
    await back.serve(again)

    async def reached() -> None:
        while True:
            try:
                await link.call("Beat", b"after", 1)
                return
            except Unreachable:
                await asyncio.sleep(0.05)

    await asyncio.wait_for(reached(), 5)
    assert again.calls[-1] == (world.name, "Beat", b"after")
    assert await link.transfer(some(b"a", b"b"))
    await link.close()
    await back.close(0)


async def test_closing_a_link_ends_its_calls(world: World) -> None:
    if isinstance(world.dialler, Memory):
        pytest.skip("a memory link holds nothing to close")
    service = Recorder()
    listener, _, link = await world.serve(service)
    call = asyncio.ensure_future(link.call("Beat", b"wait", SECONDS))
    transfer = asyncio.ensure_future(link.transfer(Sender(64)()))
    await until(lambda: bool(service.callers and service.calls))
    await link.close()
    for broken in (transfer, call):
        with pytest.raises(Unreachable, match="closed"):
            await broken
    with pytest.raises(Unreachable, match="closed"):
        await link.call("Beat", b"", SECONDS)
    await listener.close(0)


async def test_a_second_listener_at_the_same_place_is_told_to_try_later(world: World) -> None:
    listener, address, link = await world.serve(Recorder.open())
    with pytest.raises(TemporaryFailure) as caught:
        await world.listener(address).serve(Recorder.open())
    assert str(caught.value).endswith(".")
    await link.close()
    await listener.close(0)
