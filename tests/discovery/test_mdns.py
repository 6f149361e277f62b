"""mDNS: what is announced, what is believed, what an attacker on the network can do. Only loopback
hears of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from kit import TESTS, script
from kit.bare_nodes import LOOPBACK, Node, People, an_id, until
from kit.mdns_flood import GROUP, announcement, multicaster, txt
from kit.wire import Recorder, nothing_left
from peer.discovery import DiscoveryContext
from peer.discovery.mdns import ADDRESSES, PER_MEMBER, PREFIX, TTL, TYPE, HintCache, Mdns
from peer.transport.grpc import Grpc

FAKES = 10_000
GROWTH_MB = 20


@pytest.fixture(scope="module", autouse=True)
def _multicast() -> None:
    """Skips where loopback carries no multicast."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear, multicaster() as mouth:
        ear.bind(("", 0))
        joined = socket.inet_aton(GROUP[0]) + socket.inet_aton(LOOPBACK)
        try:
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("8s", joined))
            ear.settimeout(2)
            mouth.sendto(b"?", (GROUP[0], ear.getsockname()[1]))
            ear.recv(10)
        except OSError as error:
            pytest.skip(f"no multicast on loopback ({error}): ip link set lo multicast on")


@asynccontextmanager
async def listening(
    people: People, name: str = "alice", announces: str = ""
) -> AsyncIterator[Mdns]:
    """A node's mDNS, without the rest of the node."""

    async def resolve(address: str) -> list[str]:
        return [address]

    around = DiscoveryContext(
        roster=people.roster(),
        me=people.id(name),
        resolve=resolve,
        missing=lambda: [people.id("bob")],
        warn=pytest.fail,
    )
    mdns = Mdns(around, [LOOPBACK])
    await mdns.announce([announces] if announces else [])
    running = asyncio.create_task(mdns.run())
    try:
        yield mdns
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def found(mdns: Mdns, node_id: str, seconds: float = 20) -> list[str]:
    async with asyncio.timeout(seconds):
        while not (many := await mdns.addresses(node_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return list(many)


async def test_members_find_each_other_and_connect(people: People) -> None:
    async with nothing_left(), AsyncExitStack() as stack:
        alice, bob = (
            Node(people, "alice", ["bob"], ["static", "mdns"]),
            Node(people, "bob", ["alice"], ["mdns"]),
        )
        for node in (alice, bob):
            await stack.enter_async_context(node.alive())
        await until(lambda: alice.live("bob") and bob.live("alice"))
        assert (alice.source("bob"), bob.source("alice")) == ("mdns", "mdns")
        assert not alice.warnings + bob.warnings


async def test_who_comes_later_is_found_too(people: People) -> None:
    async with listening(people) as alice:
        await asyncio.sleep(0.5)
        assert not await alice.addresses(people.id("bob"))
        async with listening(people, "bob", f"{LOOPBACK}:7443"):
            assert await found(alice, people.id("bob")) == [f"{LOOPBACK}:7443"]


async def test_a_prefix_of_the_id_and_the_port_are_told_and_nothing_else(people: People) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def changed(name: str, state_change: ServiceStateChange, **_: Any) -> None:
        heard.put_nowait(name)

    async with (
        listening(people, "bob", f"{LOOPBACK}:7443"),
        AsyncZeroconf(interfaces=[LOOPBACK]) as stranger,
    ):
        browser = AsyncServiceBrowser(stranger.zeroconf, TYPE, handlers=[changed])
        prefix, name = people.id("bob")[:PREFIX], ""
        while not name.startswith(prefix):
            name = await asyncio.wait_for(heard.get(), 20)
        info = AsyncServiceInfo(TYPE, name)
        assert await info.async_request(stranger.zeroconf, 10_000)
        await browser.async_cancel()
    assert info.decoded_properties == {"id": prefix, "port": "7443"}
    chance = name.removesuffix(f".{TYPE}").removeprefix(f"{prefix}-")
    assert len(chance) == 8
    assert (info.server, info.port, info.parsed_addresses()) == (
        f"{prefix}-{chance}.local.",
        7443,
        [LOOPBACK],
    )


async def test_an_impostor_is_refused_before_any_payload_and_the_honest_pair_connects(
    people: People,
) -> None:
    """B6: carol announces alice's and bob's ids at her own server. Each tries her, and finds the
    other within 5 s.
    """
    async with AsyncExitStack() as stack:
        service, carol = Recorder.open(), Grpc(people["carol"], f"{LOOPBACK}:0")
        port = int((await carol.serve(service)).rpartition(":")[2])
        stack.push_async_callback(carol.close, 0)
        alice, bob = (
            Node(people, "alice", ["bob"], ["mdns"]),
            Node(people, "bob", ["alice"], ["mdns"]),
        )
        sender = stack.enter_context(multicaster())

        def lie(name: str) -> None:
            prefix = people.id(name)[:PREFIX]
            told = txt(id=prefix, port=str(port))
            sender.sendto(announcement(f"{prefix}-{'6' * 8}", LOOPBACK, port, told), GROUP)

        await stack.enter_async_context(alice.alive())
        while f"{LOOPBACK}:{port}" not in await alice.mdns.addresses(people.id("bob")):
            lie("bob")
            await asyncio.sleep(0.05)
        await until(
            lambda: "certificate of another node" in alice.error("bob"),
            what=lambda: alice.error("bob"),
        )
        await stack.enter_async_context(bob.alive())
        for name in ("alice", "bob"):
            lie(name)
        await until(
            lambda: alice.live("bob") and bob.live("alice"),
            5,
            lambda: alice.error("bob") + bob.error("alice"),
        )
        assert alice.table.states["bob"].address == bob.bound
        assert (service.calls, service.callers) == ([], []), (
            "nothing was said to who has another key"
        )


async def test_a_copy_of_the_honest_name_does_not_displace_it(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the very same service can be announced by others, with zeroconf's cache told to forget
    what it had.
    """
    seen: set[str] = set()
    async with listening(people) as alice, listening(people, "bob", f"{LOOPBACK}:7443"):
        note = alice.heard.note

        def noted(name: str, *given: Any) -> None:
            seen.add(name.removesuffix(f".{TYPE}"))
            note(name, *given)

        monkeypatch.setattr(alice.heard, "note", noted)
        await found(alice, people.id("bob"))
        [instance] = seen
        told = txt(id=people.id("bob")[:PREFIX], port="6666")
        with multicaster() as sender:
            for _ in range(3):
                sender.sendto(announcement(instance, "10.6.6.6", 6666, told), GROUP)
        async with asyncio.timeout(15):
            while "10.6.6.6:6666" not in await alice.addresses(people.id("bob")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert f"{LOOPBACK}:7443" in await alice.addresses(people.id("bob"))


async def test_what_is_no_mdns_or_none_of_ours_is_passed_over(people: People) -> None:
    rng = random.Random(3)
    prefix = people.id("bob")[:PREFIX]
    valid = announcement(f"{prefix}-{'7' * 8}", "10.0.0.2", 7443, txt(id=prefix, port="7443"))
    wrong = [
        announcement(f"{prefix}-{'1' * 8}", "10.0.0.3", 7443, txt(id=prefix, port="7444")),
        announcement(f"{prefix}-{'2' * 8}", "10.0.0.4", 7443, txt(id="x" * PREFIX, port="7443")),
        announcement(
            f"{prefix}-{'3' * 8}", "10.0.0.5", 7443, txt(id=prefix, port="7443", more="than that")
        ),
        announcement(f"{prefix}-{'4' * 8}", "224.0.0.1", 7443, txt(id=prefix, port="7443")),
        announcement(f"{prefix}-{'5' * 8}", "10.0.0.6", 0, txt(id=prefix, port="0")),
        announcement(f"{prefix}x-{'6' * 8}", "10.0.0.7", 7443, txt(id=prefix, port="7443")),
        announcement(
            f"{an_id('nobody')[:PREFIX]}-{'6' * 8}", "10.0.0.8", 7443, txt(id=prefix, port="7443")
        ),
        *(rng.randbytes(rng.randrange(600)) for _ in range(200)),
        *(bytes(b ^ (rng.random() < 0.02) * rng.randrange(256) for b in valid) for _ in range(200)),
    ]
    async with listening(people) as alice:
        await asyncio.sleep(0.3)
        with multicaster() as sender:
            for packet in wrong[:7]:
                sender.sendto(packet, GROUP)
            for packet in wrong[7:]:
                sender.sendto(packet, GROUP)
                await asyncio.sleep(0)
            sender.sendto(valid, GROUP)
        seen: set[str] = set()
        async with asyncio.timeout(20):
            while "10.0.0.2:7443" not in seen:
                seen |= {*await alice.addresses(people.id("bob"))}
                await asyncio.sleep(0.01)
        assert not {f"10.0.0.{i}" for i in range(3, 9)} & {each.rpartition(":")[0] for each in seen}
        assert not any(each.startswith("224") for each in seen)


async def test_what_is_still_asked_for_at_the_end_is_given_up(people: People) -> None:
    """A service whose host has no address yet: its records are asked for, and nothing of it is left
    over.
    """
    prefix = people.id("bob")[:PREFIX]
    half = announcement(
        f"{prefix}-{'8' * 8}", "10.0.0.2", 7443, txt(id=prefix, port="7443"), records=2
    )

    def asking() -> bool:
        return any("RecordListener._request" in repr(task) for task in asyncio.all_tasks())

    async with listening(people):
        with multicaster() as sender:
            async with asyncio.timeout(20):
                while not asking():
                    sender.sendto(half, GROUP)
                    await asyncio.sleep(0.02)
    assert not asking()


async def test_a_machine_without_mdns_gets_a_sentence(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(socket, "socket", refuse)
    warnings: list[str] = []
    mdns = Mdns(
        DiscoveryContext(roster=people.roster(), me=people.id("alice"), warn=warnings.append)
    )
    await mdns.run()
    assert warnings == [
        "mDNS can't be used on this machine (Address already in use); take mdns out of "
        "peers.discovery."
    ]


# -- limits


def test_few_addresses_are_kept_and_not_for_long(people: People) -> None:
    heard = HintCache([people.id("alice"), people.id("bob")])
    prefix = people.id("bob")[:PREFIX]
    for i in range(100):
        heard.note(f"{prefix}-{i:08x}.{TYPE}", 1 + i, ["10.0.0.2"], now=float(i))
    assert heard.addresses(people.id("bob"), 100.0) == tuple(
        f"10.0.0.2:{i}" for i in range(100, 100 - PER_MEMBER, -1)
    )
    assert heard.addresses(people.id("alice"), 100.0) == ()
    assert heard.addresses(people.id("bob"), 99.0 + TTL - 0.5) == ("10.0.0.2:100",)
    assert heard.addresses(people.id("bob"), 100.0 + TTL) == ()
    assert len(heard) == 0


def test_no_more_addresses_than_the_cap_whoever_they_are() -> None:
    ids = [an_id(str(i)) for i in range(1000)]
    heard = HintCache(ids)
    for node_id in ids:
        heard.note(f"{node_id[:PREFIX]}-00000000.{TYPE}", 7, ["10.0.0.2"], now=0.0)
    assert len(heard) == ADDRESSES
    assert heard.addresses(ids[-1], 1.0)
    assert not heard.addresses(ids[0], 1.0)


@pytest.mark.parametrize(
    "host", ["224.0.0.1", "0.0.0.0", "::", "fe80::1", "ff02::1", "localhost", ""]
)
def test_addresses_that_nobody_can_have_are_dropped(people: People, host: str) -> None:
    heard = HintCache([people.id("bob")])
    heard.note(f"{people.id('bob')[:PREFIX]}-00000000.{TYPE}", 7, [host], now=0.0)
    assert len(heard) == 0


def test_a_flood_of_fakes_costs_little_memory_and_hides_nobody() -> None:
    """B6: 10^4 made-up services, a quarter of them under bob's prefix; afterwards bob is found,
    first of his.
    """
    done = subprocess.run(
        script("mdns_flood", str(FAKES)),
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["impostors"] > FAKES / 40, "the flood was not heard"
    assert said["addresses"] <= PER_MEMBER
    assert said["rss_mb"] < GROWTH_MB
    assert said["first"] == "10.0.0.2:7443"
    assert done.stderr == "", "names of strangers are not logged"
