"""What is particular to gRPC: exhaustion, keep-alive, health, and the sentences for ports and
addresses.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from kit import TESTS, script
from kit.concurrent_transfers import MANY
from kit.reconnect_storm import LINKS
from kit.wire import SECONDS, Federation, Recorder, Sender, nothing_left, some, until
from peer.codec import FRAME, MAX_MESSAGE
from peer.errors import ConfigurationError, TemporaryFailure, Unreachable
from peer.transport.grpc import Grpc, transport
from peer.transport.grpc import options as wire
from peer.v1 import peer_pb2

LOCAL = "127.0.0.1:0"


async def test_100_megabytes_arrive_intact_over_mutual_tls(federation: Federation) -> None:
    block = random.Random(1).randbytes(FRAME)
    digest = hashlib.sha256()

    async def messages() -> AsyncIterator[bytes]:
        for i in range(100):
            message = i.to_bytes(4, "big") + block[4:]
            digest.update(message)
            yield message

    async with nothing_left():
        listener = Grpc(federation.alice, LOCAL)
        link = Grpc(federation.bob, LOCAL).link(
            federation.alice.id, await listener.serve(Recorder.open())
        )
        assert await link.transfer(messages()) == digest.digest()
        await link.close()
        await listener.close(0)


BOMB = """
import asyncio, sys
import grpc
async def main():
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(sys.argv[1], options=options, compression=grpc.Compression.Gzip) as channel:
        for path in ("Beat", "Transfer"):
            try:
                call = channel.stream_stream("/peerpoise.peer.v1.Peer/" + path)()
                await call.write(bytes(int(sys.argv[2])))
                await call.done_writing()
                print("answer" if await call.read() else "nothing")
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                print((await call.code()).name)
asyncio.run(main())
"""


@pytest.mark.parametrize("size", [1 << 20, 200 << 20])
async def test_compressed_messages_are_refused_small_or_bomb(size: int) -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(None, LOCAL)
        address = await listener.serve(service)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        command = [sys.executable, "-c", BOMB, address, str(size)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert "answer" not in out.decode()
        assert len(out.decode().split()) == 2
        assert not service.calls
        assert not service.read
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB
        link = Grpc(None, LOCAL).link("x", address)
        assert await link.call(
            "Beat", bytes(1 << 20), SECONDS
        )  # the same, not compressed: the refusal has power
        await link.close()
        await listener.close(0)


async def test_a_message_above_the_cap_ends_its_transfer_only() -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(None, LOCAL)
        link = Grpc(None, LOCAL).link("x", await listener.serve(service))
        with pytest.raises(Unreachable):
            await link.transfer(some(b"header", bytes(MAX_MESSAGE + 1)))
        assert await link.transfer(some(b"header", bytes(FRAME)))
        await link.close()
        await listener.close(0)


async def many_transfers(
    federation: Federation, listener: Grpc
) -> tuple[list[str], list[str], Recorder]:
    """What `kit/concurrent_transfers.py` met: how its transfers ended, its beats, and what came in."""
    service = Recorder()
    address = await listener.serve(service)
    folders = [str(federation.folder / name) for name in ("bob", "carol")]
    process = await asyncio.create_subprocess_exec(
        *script("concurrent_transfers", address, federation.alice.id, *folders),
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[str] = []

    async def listen(out: asyncio.StreamReader) -> None:
        while line := await out.readline():
            lines.append(line.decode().strip())

    listening = asyncio.ensure_future(listen(process.stdout))
    await until(lambda: len(service.callers) + len(lines) == MANY, 30)
    process.stdin.write(b"beat\n")
    await until(lambda: sum(line.startswith("beat") for line in lines) == 2)
    service.gate.set()
    await listening
    assert await process.wait() == 0
    await listener.close(0)
    heartbeats = [line for line in lines if line.startswith("beat")]
    return [line for line in lines if line not in heartbeats], heartbeats, service


BUSY = f"refused {peer_pb2.CODE_BUSY}"


async def test_one_node_with_many_open_transfers_locks_nobody_out(federation: Federation) -> None:
    async with nothing_left():
        ended, heartbeats, service = await many_transfers(federation, Grpc(federation.alice, LOCAL))
        assert heartbeats == ["beat answer to alive"] * 2
        assert len(service.verdicts) == ended.count("verdict") == wire.TRANSFERS_PER_PEER
        assert ended.count(BUSY) == MANY - wire.TRANSFERS_PER_PEER


async def test_power_without_the_quota_it_would(federation: Federation) -> None:
    async with nothing_left():
        listener = Grpc(federation.alice, LOCAL, transfers_per_peer=10_000)
        listener._rpcs = 16
        ended, heartbeats, _ = await many_transfers(federation, listener)
        assert heartbeats == [f"beat {BUSY}"] * 2
        assert ended.count("verdict") == 16


async def test_control_does_not_wait_behind_bulk() -> None:
    async with nothing_left():
        service, listener = Recorder(), Grpc(None, LOCAL, transfers_per_peer=10_000)
        link = Grpc(None, LOCAL).link("x", await listener.serve(service))
        service.gate.set()
        await link.transfer(some(b"so that both ends know each other's limits"))
        service.gate.clear()
        service.callers.clear()
        transfers = [asyncio.ensure_future(link.transfer(Sender(1)())) for _ in range(20)]
        await until(lambda: len(service.callers) == wire.STREAMS_PER_CONNECTION)
        assert await link.call("Beat", b"alive", SECONDS) == b"answer to alive"
        assert (
            len(service.callers) == wire.STREAMS_PER_CONNECTION
        )  # the connection of bulk is full indeed
        for transfer in transfers:
            transfer.cancel()
        await asyncio.wait(transfers)
        await link.close()
        await listener.close(0)


async def test_a_call_that_never_sends_its_message_gives_its_place_back() -> None:
    async with nothing_left():
        service, listener = Recorder.open(), Grpc(None, LOCAL, request=0.2)
        address = await listener.serve(service)
        async with Grpc(None, LOCAL).channel("x", address) as channel:
            silent: list[Any] = [
                channel.stream_stream("/peerpoise.peer.v1.Peer/Beat")()
                for _ in range(wire.CALLS_PER_PEER)
            ]
            codes = await asyncio.gather(*(call.code() for call in silent))
            assert {code.name for code in codes} == {"INVALID_ARGUMENT"}
            beat: Any = channel.unary_unary("/peerpoise.peer.v1.Peer/Beat")
            assert await beat(b"x", timeout=SECONDS) == b"answer to x"
        assert not listener._open
        await listener.close(0)


async def test_silent_connections_are_dropped_and_harm_nobody(federation: Federation) -> None:
    async with nothing_left():
        listener = Grpc(federation.alice, LOCAL, handshake=1.0)
        address = await listener.serve(Recorder.open())
        host, _, port = address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        link = Grpc(federation.bob, LOCAL).link(federation.alice.id, address)
        assert await link.call("Beat", b"alive", 1) == b"answer to alive"
        async with asyncio.timeout(5):
            assert {await reader.read() for reader, _ in silent} == {b""}
        for _, writer in silent:
            writer.close()
            await writer.wait_closed()
        await link.close()
        await listener.close(0)


async def test_an_idle_transfer_survives_keep_alive_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two option sets belong together: with grpc's default tolerance at the listener the
    connection is cut.

    (One second is the fastest grpc pings; one strike instead of two only makes the test shorter.)
    """
    options = wire.server_options

    async def idle(
        *without: str,
    ) -> tuple[asyncio.Future[bytes], Recorder, Callable[[], Awaitable[None]]]:
        def changed(*arguments: Any) -> list[tuple[str, Any]]:
            kept = [one for one in options(*arguments) if one[0] not in without]
            return [(name, 1 if "strikes" in name else value) for name, value in kept]

        monkeypatch.setattr(transport, "server_options", changed)
        service, listener, dialler = Recorder(), Grpc(None, LOCAL), Grpc(None, LOCAL)
        listener._keepalive = dialler._keepalive = 1.0
        link = dialler.link("x", await listener.serve(service))

        async def close() -> None:
            await link.close()
            await listener.close(0)

        return asyncio.ensure_future(link.transfer(some(b"header", b"more"))), service, close

    async with nothing_left():
        ours, service, close = await idle()
        default, _, close_default = await idle("grpc.http2.min_ping_interval_without_data_ms")
        with pytest.raises(Unreachable):
            await asyncio.wait_for(default, 20)
        assert not ours.done()
        service.gate.set()
        assert await ours
        await close()
        await close_default()


async def test_health_tells_whether_the_node_serves(federation: Federation) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with nothing_left():
        listener = Grpc(federation.alice, LOCAL)
        address = await listener.serve(Recorder.open())
        async with Grpc(federation.bob, LOCAL).channel(federation.alice.id, address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            seen = [(await watch.read()).status]
            for serving in (True, False):
                await listener.set_serving(serving)
                seen.append((await watch.read()).status)
                answer = await stub.Check(
                    health_pb2.HealthCheckRequest(service=wire.SERVICE), timeout=SECONDS
                )
                assert answer.status == seen[-1]
            assert seen == [2, 1, 2]
            watch.cancel()
        await listener.close(0)


async def test_ports_and_addresses_that_cannot_be_used_give_a_sentence() -> None:
    async with nothing_left():
        listener = Grpc(None, LOCAL)
        address = await listener.serve(Recorder.open())
        with pytest.raises(TemporaryFailure, match="is taken by another process"):
            await Grpc(None, address).serve(Recorder.open())
        with pytest.raises(ConfigurationError, match="can't be listened on"):
            await Grpc(None, "203.0.113.77:7443").serve(Recorder.open())
        with pytest.raises(ConfigurationError, match="can't find that host name"):
            await Grpc(None, "nowhere.invalid:7443").serve(Recorder.open())
        for address in ("nowhere", "a:b", "::1:80"):
            with pytest.raises(ConfigurationError):
                Grpc(None, address)
            with pytest.raises(ConfigurationError):
                listener.link("x", address)
        with pytest.raises(ConfigurationError, match="at least 20 seconds"):
            Grpc(None, LOCAL, keepalive=5)
        await listener.close(0)


async def test_nobody_listening_is_said_so() -> None:
    link = Grpc(None, LOCAL).link("x", "127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"Nobody listens at 127\.0\.0\.1:1\."):
        await link.call("Beat", b"", SECONDS)
    await link.close()


async def test_insecure_shows() -> None:
    assert Grpc(None, LOCAL).insecure


async def test_a_http_proxy_of_the_environment_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    async with nothing_left():
        listener = Grpc(None, LOCAL)
        link = Grpc(None, LOCAL).link("x", await listener.serve(Recorder.open()))
        assert await link.call("Beat", b"x", SECONDS) == b"answer to x"
        await link.close()
        await listener.close(0)


def test_the_daemons_loop_carries_it_too(federation: Federation) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop does not exist on this platform")

    async def scenario() -> None:
        async with nothing_left():
            service, sender = Recorder(take=1), Sender(64)
            listener = Grpc(federation.alice, LOCAL)
            link = Grpc(federation.bob, LOCAL).link(
                federation.alice.id, await listener.serve(service)
            )
            early = asyncio.ensure_future(link.transfer(sender()))
            await service.started.wait()
            service.gate.set()
            assert await early == Sender(1).digest
            service.take = None
            assert await link.transfer(Sender(32)()) == Sender(32).digest
            assert await link.call("Beat", b"x", SECONDS) == b"answer to x"
            await link.close()
            await listener.close(0)

    uvloop.run(scenario())


def test_grpc_is_given_a_certificate_once_and_when_it_changed(federation: Federation) -> None:
    """Given at every connection, it ended listeners: see the test below."""
    listener = Grpc(federation.alice, LOCAL)
    assert listener._certificate() is not None
    assert listener._changed_certificate() is None
    listener.rotate(replace(federation.alice))
    assert listener._changed_certificate() is not None
    assert listener._changed_certificate() is None


@pytest.mark.cluster
def test_a_storm_of_connections_ends_nobody(federation: Federation) -> None:
    """With a new certificate for each, grpc 1.85.1's listener died of a segmentation fault within
    seconds each time.
    """
    times, dialling = 30, 5
    alice, bob = (str(federation.folder / name) for name in ("alice", "bob"))
    listener = subprocess.Popen(
        script("reconnect_storm", "listen", alice), cwd=TESTS, stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout is not None
    try:
        address = listener.stdout.readline().strip()
        words = script("reconnect_storm", "dial", bob, address, federation.alice.id, str(times))
        dialers = [
            subprocess.Popen(words, cwd=TESTS, stdout=subprocess.PIPE, text=True)
            for _ in range(dialling)
        ]
        answered = [int(each.communicate(timeout=120)[0]) for each in dialers]
        assert listener.poll() is None, "the listener died"
        assert answered == [times * LINKS] * dialling
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
