"""The in-memory network fails as ordered, and the same way for the same seed."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from kit.wire import SECONDS, Recorder, Sender, nothing_left, some, until
from peer.errors import ConfigurationError, Unreachable
from peer.transport.memory import Memory, MemoryLink, Network


async def nodes(network: Network, *names: str) -> list[Recorder]:
    services = [Recorder.open() for _ in names]
    for name, service in zip(names, services, strict=True):
        await Memory(network, name).serve(service)
    return services


async def fates(seed: int, drop: float) -> tuple[list[str], int, int]:
    """What 60 calls and 60 transfers met, and how many of each the receiver saw whole."""
    network = Network(seed, drop=drop)
    service, _ = await nodes(network, "b", "a")
    link, met = MemoryLink(network, "a", "b"), []
    for i in range(60):
        for attempt in (
            link.call("Beat", bytes([i]), SECONDS),
            link.transfer(some(b"h", b"f", b"t")),
        ):
            try:
                await attempt
                met.append("ok")
            except Unreachable as error:
                met.append(str(error))
    return met, len(service.calls), len(service.verdicts)


async def test_losses_are_drawn_from_the_seed_and_hit_every_place() -> None:
    met, calls, verdicts = await fates(3, 0.4)
    assert (met, calls, verdicts) == await fates(3, 0.4)
    assert met != (await fates(4, 0.4))[0]
    lost = [what for what in met if what != "ok"]
    assert 24 < len(lost) < 72
    for kind in (
        "A call to b was lost",
        "An answer of b was lost",
        "broke on the way",
        "A verdict of b was lost",
    ):
        assert any(kind in what for what in lost), kind
    assert met[::2].count("ok") < calls < 60  # some were delivered although the caller never heard
    assert met[1::2].count("ok") < verdicts < 60
    assert (await fates(3, 0.0)) == (["ok"] * 120, 60, 60)
    assert "ok" not in (await fates(3, 1.0))[0]


async def test_delays_are_drawn_between_the_bounds() -> None:
    network = Network(1, delay=(0.01, 0.02))
    await nodes(network, "a", "b")
    loop = asyncio.get_running_loop()
    start = loop.time()
    await MemoryLink(network, "a", "b").call("Beat", b"", SECONDS)
    assert 0.02 <= loop.time() - start < 1


async def test_duplicates_reach_the_service_twice_and_the_caller_once() -> None:
    async with nothing_left():
        network = Network(duplicate=1.0)
        service, _ = await nodes(network, "b", "a")
        link = MemoryLink(network, "a", "b")
        assert await link.call("Beat", b"x", SECONDS) == b"answer to x"
        assert await link.transfer(some(b"h", b"t"))
        await until(lambda: len(service.calls) == 2 == len(service.verdicts))
        assert len(set(service.verdicts)) == 1


async def test_a_duplicate_that_never_ends_leaves_with_the_node() -> None:
    async with nothing_left():
        network, service = Network(duplicate=1.0), Recorder()
        node = Memory(network, "b")
        await node.serve(service)
        call = asyncio.ensure_future(MemoryLink(network, "a", "b").call("Beat", b"wait", SECONDS))
        await service.started.wait()
        service.gate.set()
        await call
        service.gate.clear()
        await until(lambda: len(service.calls) == 2)
        await node.close(0)


async def test_a_partition_breaks_what_is_open_and_heals() -> None:
    network = Network()
    _, b, _ = await nodes(network, "a", "b", "c")
    b.gate.clear()
    across, within = MemoryLink(network, "a", "b"), MemoryLink(network, "a", "c")
    transfer = asyncio.ensure_future(across.transfer(Sender(9)()))
    await b.started.wait()
    network.partition(["a", "c"], ["b"])
    with pytest.raises(Unreachable, match="broke"):
        await transfer
    await asyncio.wait_for(b.ended.wait(), SECONDS)
    for link in (across, MemoryLink(network, "b", "c")):
        with pytest.raises(Unreachable):
            await link.call("Beat", b"", SECONDS)
    assert await within.call("Beat", b"", SECONDS)
    network.heal()
    assert await across.call("Beat", b"", SECONDS)


async def test_a_one_way_cut_loses_answers_of_calls_that_arrived() -> None:
    network = Network()
    a, b = await nodes(network, "a", "b")
    network.cut(["b"], ["a"])
    with pytest.raises(Unreachable):
        await MemoryLink(network, "a", "b").call("Beat", b"there", SECONDS)
    assert [request for _, _, request in b.calls] == [b"there"]
    with pytest.raises(Unreachable):
        await MemoryLink(network, "b", "a").call("Beat", b"", SECONDS)
    assert not a.calls


async def test_a_killed_node_is_gone_both_ways_until_it_serves_again() -> None:
    async with nothing_left():
        network = Network()
        _, b = await nodes(network, "a", "b")
        b.gate.clear()
        link = MemoryLink(network, "a", "b")
        call = asyncio.ensure_future(link.call("Beat", b"wait", SECONDS))
        await b.started.wait()
        network.kill("b")
        with pytest.raises(Unreachable, match="broke"):
            await call
        for broken in (link, MemoryLink(network, "b", "a")):
            with pytest.raises(Unreachable):
                await broken.call("Beat", b"", SECONDS)
        await Memory(network, "b").serve(Recorder.open())
        assert await link.call("Beat", b"", SECONDS)
        network.heal()


async def test_what_was_sent_is_not_what_the_sender_changes_later() -> None:
    network = Network()
    (service,) = await nodes(network, "b")
    message = bytearray(b"before")

    async def reusing() -> object:
        yield message
        message[:] = b"after!"
        yield message

    verdict = await MemoryLink(network, "a", "b").transfer(reusing())  # type: ignore[arg-type]
    assert verdict == hashlib.sha256(b"beforeafter!").digest()
    assert service.read == 12


@pytest.mark.parametrize(
    "faults", [{"drop": 1.1}, {"duplicate": -0.1}, {"delay": (2.0, 1.0)}, {"delay": (-1.0, 1.0)}]
)
def test_impossible_faults_are_refused(faults: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Network(**faults)  # type: ignore[arg-type]
