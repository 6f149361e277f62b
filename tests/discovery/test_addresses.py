"""Host names, naming schemes, several discoveries together, and what a node says of its own
address.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from kit.bare_nodes import LOOPBACK, NAMES, Node, People, until
from kit.wire import nothing_left
from node.config import PeersSection
from peer.discovery import DISCOVERIES, DiscoveryContext, addresses, find, resolver
from peer.discovery.addresses import AddressBook, own_addresses
from peer.discovery.resolver import Resolver
from peer.discovery.static import Static
from peer.endpoint import endpoint, format_endpoint
from peer.errors import ConfigurationError, Unreachable


class Table:
    """A name server: name -> its addresses; what it lacks does not exist. Counts what it is
    asked.
    """

    def __init__(self, **table: Sequence[str]) -> None:
        self.table: dict[str, Sequence[str]] = dict(table)
        self.asked: list[str] = []

    def __call__(self, host: str, port: object, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (ip, 0)) for ip in self.table[host]]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# -- names


async def test_an_ip_is_nobodys_name() -> None:
    table = Table()
    for address in (f"{LOOPBACK}:1", "[::1]:2"):
        assert await Resolver(table).resolve(address) == (address,)
    assert not table.asked


async def test_every_address_of_a_name_is_given() -> None:
    found = await Resolver(Table(many=[LOOPBACK, "::1", "10.0.0.1", LOOPBACK])).resolve("many:7")
    assert found == [f"{LOOPBACK}:7", "[::1]:7", "10.0.0.1:7"]


async def test_the_systems_own_look_up() -> None:
    assert f"{LOOPBACK}:7" in await Resolver().resolve("localhost:7")


@pytest.mark.parametrize("name", ["a" * 70 + ".invalid", ".."])
async def test_what_can_be_no_name_gives_a_sentence(name: str) -> None:
    async with nothing_left():
        with pytest.raises(Unreachable, match=r"The name .* can't be found|looked up") as caught:
            await Resolver().resolve(f"{name}:7")
        assert name in str(caught.value)


async def test_a_name_may_exist_later() -> None:
    table = Table()
    it = Resolver(table)
    with pytest.raises(Unreachable, match="can't be found"):
        await it.resolve("later:7")
    table.table["later"] = [LOOPBACK]
    assert await it.resolve("later:7") == [f"{LOOPBACK}:7"]
    table.table["later"] = ["10.0.0.1"]
    assert await it.resolve("later:7") == ["10.0.0.1:7"], "and change"


async def test_however_many_ask_a_name_is_looked_up_once_at_a_time() -> None:
    go, table = threading.Event(), Table(slow=[LOOPBACK])

    def slow(*given: Any, **more: Any) -> list[Any]:
        go.wait()
        return table(*given, **more)

    it = Resolver(slow)
    waiting = [asyncio.create_task(it.resolve("slow:7")) for _ in range(50)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*waiting) == [[f"{LOOPBACK}:7"]] * 50
    assert table.asked == ["slow"]


async def test_a_name_server_that_does_not_answer_holds_up_nobody() -> None:
    go = threading.Event()

    def silent(*_: Any, **__: Any) -> list[Any]:
        go.wait()
        return []

    with pytest.raises(Unreachable, match="does not answer"):
        await Resolver(silent, seconds=0.05).resolve("silent:7")
    go.set()


async def test_ever_new_names_of_one_node_get_no_more_threads() -> None:
    go, before = threading.Event(), threading.active_count()
    it = Resolver(
        lambda host, *_, **__: (
            [(0, 0, 0, "", ("10.0.0.1", 0))] if host == "honest" or not go.wait() else []
        ),
        seconds=0.25,
    )
    for n in range(2 * resolver.OPEN):
        with pytest.raises(
            Unreachable, match="does not answer" if n < resolver.OPEN else "8 others of that node's"
        ):
            await it.resolve(f"silent{n}:7", "mallory")
    assert threading.active_count() - before <= resolver.OPEN
    assert await it.resolve("honest:7", "bob") == ["10.0.0.1:7"]
    go.set()
    await until(lambda: threading.active_count() <= before)
    assert await it.resolve("honest:7", "mallory") == ["10.0.0.1:7"]


def test_a_process_ends_though_a_look_up_hangs() -> None:
    program = """
import asyncio, threading
from peer.discovery.resolver import Resolver
async def main():
    silent = Resolver(lambda *_, **__: threading.Event().wait(), seconds=0.05)
    try:
        await silent.resolve("silent:7")
    except Exception as error:
        print(error)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "does not answer" in done.stdout


# -- together


async def test_discoveries_are_asked_in_the_order_of_the_table_and_each_address_is_given_once(
    people: People,
) -> None:
    around = DiscoveryContext(
        roster=people.roster(bob=f"{LOOPBACK}:1"), static={"bob": "first:2"}, dns="{name}.test:3"
    )
    table = Table(first=["10.0.0.1"], **{"bob.test": ["10.0.0.2", LOOPBACK]})
    it = AddressBook.of(["dns", "static"], around, Resolver(table))
    bob = people.id("bob")
    assert await it.addresses(bob) == ["10.0.0.1:2", f"{LOOPBACK}:1", "10.0.0.2:3", f"{LOOPBACK}:3"]
    assert it.source(bob, "10.0.0.1:2") == "static: first:2"
    assert it.source(bob, f"{LOOPBACK}:1") == "static"
    assert it.source(bob, "10.0.0.2:3") == "dns: bob.test:3"
    assert it.source(bob, "10.9.9.9:9") == ""


async def test_who_has_no_address_gets_a_sentence_with_what_each_discovery_lacks(
    people: People,
) -> None:
    around = DiscoveryContext(
        roster=people.roster(), static={"bob": "nowhere:1"}, me=people.id("alice")
    )
    it = AddressBook.of(["static", "exchange", "mdns"], around, Resolver(Table()))
    with pytest.raises(Unreachable) as caught:
        await it.addresses(people.id("bob"))
    assert str(caught.value) == (
        "No address is known for bob (The name nowhere can't be found (Name or service not known); "
        "exchange: no member that was asked knows one; mdns: nobody on this network announces one)."
    )
    with pytest.raises(
        Unreachable, match=r"carol \(static: neither roster nor peers.static has one"
    ):
        await it.addresses(people.id("carol"))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", ["exchange", "mdns"])
async def test_hearsay_leads_nobody_to_its_own_loopback(
    people: People, name: str, local: bool
) -> None:
    """Neither by number nor by a name; but all nodes of one machine may find each other so."""
    around = DiscoveryContext(roster=people.roster(), me=people.id("alice"))
    it = AddressBook.of([name], around, Resolver(Table(inside=["127.0.0.2"], outside=["10.0.0.1"])))
    bob = people.id("bob")
    it.discoveries[name] = Static({bob: ("[::1]:1", "127.0.0.1:2", "inside:3", "outside:4")})
    await it.announce(["127.0.0.1:7"] if local else ["10.0.0.7:7"])
    found = await it.addresses(bob)
    assert found == (
        ["[::1]:1", "127.0.0.1:2", "127.0.0.2:3", "10.0.0.1:4"] if local else ["10.0.0.1:4"]
    )


async def test_all_names_of_a_member_are_looked_up_at_once(people: People) -> None:
    """Whoever runs a silent name server announces as many of its names as there may be."""
    together = threading.Barrier(4)

    def look_up(name: str, *_: Any, **__: Any) -> list[Any]:
        together.wait(5)
        return [(None, None, None, "", ("10.0.0.1", 0))]

    around = DiscoveryContext(roster=people.roster(bob="d:4"), static={"bob": "a:1"})
    it = AddressBook.of(["static"], around, Resolver(look_up))
    it.discoveries["static"] = Static({people.id("bob"): ("a:1", "b:2", "c:3", "d:4")})
    assert await it.addresses(people.id("bob")) == [f"10.0.0.1:{port}" for port in (1, 2, 3, 4)]


def test_configuration_and_table_know_the_same_discoveries() -> None:
    for name in DISCOVERIES:
        assert PeersSection(discovery=(name,)).discovery == (name,)
        assert find(name)
    with pytest.raises(ConfigurationError, match="Unknown discovery 'pigeon'; choose one of dns, "):
        find("pigeon")
    with pytest.raises(ValueError, match="no discovery 'pigeon'; choose among static, dns, "):
        PeersSection(discovery=("pigeon",))


@pytest.mark.parametrize(
    ("scheme", "says"),
    [("", "set peers.dns"), ("h", "is not an address"), ("h:0", "needs the port")],
)
def test_a_naming_scheme_that_is_none_gives_a_sentence(
    people: People, scheme: str, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        AddressBook.of(["dns"], DiscoveryContext(roster=people.roster(), dns=scheme))


# -- the session dials what is found


async def test_a_name_per_node(people: People) -> None:
    """bob's name does not exist when alice starts."""
    table = Table()
    async with AsyncExitStack() as stack:
        bob = Node(
            people,
            "bob",
            ["alice"],
            ["dns"],
            listen=f"{LOOPBACK}:0",
            names=Resolver(table),
            dns="{name}.test:7",
        )
        port = endpoint(await bob.serve())[1]
        alice = Node(
            people, "alice", ["bob"], ["dns"], names=Resolver(table), dns=f"{{name}}.test:{port}"
        )
        bob.addresses.discoveries = {
            "dns": find("dns").of(
                DiscoveryContext(
                    roster=people.roster(), dns=f"{{name}}.test:{endpoint(await alice.serve())[1]}"
                )
            )
        }
        for node in (alice, bob):
            await stack.enter_async_context(node.alive())
        await until(lambda: "The name bob.test can't be found" in alice.error("bob"))
        table.table |= {"alice.test": [LOOPBACK], "bob.test": [LOOPBACK]}
        await until(lambda: alice.live("bob") and bob.live("alice"))
        assert alice.source("bob") == f"dns: bob.test:{port}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127/8 without set-up")
async def test_one_name_for_all_nodes(people: People) -> None:
    """Each address of the name is another node's; the certificate says when it is the right one."""
    table, everybody = Table(), "all.test"
    async with AsyncExitStack() as stack:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        table.table[everybody] = [f"127.0.0.{i + 1}" for i in range(len(NAMES))]
        nodes = {}
        for i, name in enumerate(NAMES):
            others = [NAMES[i - 1], NAMES[(i + 1) % len(NAMES)]]
            nodes[name] = Node(
                people,
                name,
                others,
                ["dns"],
                listen=f"127.0.0.{i + 1}:{port}",
                names=Resolver(table),
                dns=f"{everybody}:{port}",
            )
            await nodes[name].serve()
        for node in nodes.values():
            await stack.enter_async_context(node.alive())
        for i, name in enumerate(NAMES):
            after = NAMES[(i + 1) % len(NAMES)]
            await until(partial(nodes[name].live, NAMES[i - 1], after))
            assert nodes[name].table.states[NAMES[i - 1]].address == nodes[NAMES[i - 1]].bound


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_as_an_address_and_behind_a_name(people: People) -> None:
    async with AsyncExitStack() as stack:
        alice = Node(people, "alice", ["bob"], ["static"], listen="[::1]:0")
        at = await alice.serve()
        table = Table(six=["::1"])
        bob = Node(people, "bob", ["alice"], ["static"], listen="[::1]:0", names=Resolver(table))
        bob.addresses.discoveries["static"] = find("static").of(
            DiscoveryContext(roster=people.roster(), static={"alice": f"six:{endpoint(at)[1]}"})
        )
        alice.addresses.discoveries["static"] = find("static").of(
            DiscoveryContext(roster=people.roster(bob=await bob.serve()))
        )
        for node in (alice, bob):
            await stack.enter_async_context(node.alive())
        await until(lambda: alice.live("bob") and bob.live("alice"))
        assert bob.table.states["alice"].address == at


async def test_dead_addresses_before_the_right_one_cost_little(people: People) -> None:
    """The pause between attempts grows only when all addresses were tried: eight dead ones would
    take over 5 s else.
    """
    dead = [f"{LOOPBACK}:{port}" for port in range(1, 9)]
    async with AsyncExitStack() as stack:
        bob = Node(people, "bob", ["alice"], ["static"])
        alice = Node(people, "alice", ["bob"], ["static"])
        alice.addresses.discoveries["static"] = Static(
            {people.id("bob"): [*dead, await bob.serve()]}
        )
        bob.addresses.discoveries["static"] = Static({people.id("alice"): [await alice.serve()]})
        for node in (alice, bob):
            await stack.enter_async_context(node.alive())
        await until(lambda: alice.live("bob"), 4, lambda: alice.error("bob"))
        assert alice.table.states["bob"].address == bob.bound


# -- the own address


@pytest.mark.parametrize(
    ("bound", "advertise", "expected"),
    [
        ("0.0.0.0:7443", "node.example:7000", ["node.example:7000"]),
        ("127.0.0.1:7443", "127.0.0.1:7443", ["127.0.0.1:7443"]),
        ("10.0.0.1:7443", "", ["10.0.0.1:7443"]),
        ("[2001:db8::5]:7443", "", ["[2001:db8::5]:7443"]),
        ("node.example:7443", "", ["node.example:7443"]),
    ],
)
def test_what_is_announced_follows_from_what_is_set(
    bound: str, advertise: str, expected: list[str]
) -> None:
    assert own_addresses(bound, advertise) == expected


def test_who_listens_everywhere_announces_what_others_can_dial() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        try:
            found = own_addresses(f"0.0.0.0:{port}", "")
        except ConfigurationError as error:
            pytest.skip(f"this machine is on no network: {error}")
        for address in found:
            host, at = endpoint(address)
            assert (at, host.startswith("127."), ":" in host) == (port, False, False)
            socket.create_connection((host, at), timeout=5).close()


@pytest.mark.parametrize(
    ("bound", "advertise", "interfaces", "says"),
    [
        ("127.0.0.1:7443", "", ["10.0.0.1"], "only this machine reaches it"),
        ("[::1]:7443", "", ["10.0.0.1"], "only this machine reaches it"),
        ("0.0.0.0:7443", "", [], "set listen.advertise"),
        ("0.0.0.0:7443", "", ["127.0.0.1", "169.254.3.4", "2001:db8::1"], "set listen.advertise"),
        ("0.0.0.0:7443", "h:0", ["10.0.0.1"], "needs the host and the port"),
        ("10.0.0.1:7443", "0.0.0.0:7443", [], "needs the host and the port"),
        ("10.0.0.1:7443", "[::]:7443", [], "needs the host and the port"),
        ("10.0.0.1:7443", "bücher.example:7443", [], "a name in ASCII"),
        ("10.0.0.1:7443", f"{'h' * 260}:7443", [], "can't be announced"),
        ("bücher.example:7443", "", [], "a name in ASCII"),
    ],
)
def test_who_can_announce_nothing_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, bound: str, advertise: str, interfaces: list[str], says: str
) -> None:
    machine(monkeypatch, *interfaces)
    with pytest.raises(ConfigurationError, match=says):
        own_addresses(bound, advertise)


def test_of_many_interfaces_the_one_towards_the_default_route_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(
        monkeypatch,
        "172.17.0.1",
        "10.0.0.7",
        "2001:db8::7",
        "fe80::1",
        "127.0.0.1",
        towards="10.0.0.7",
    )
    assert own_addresses("0.0.0.0:1", "") == ["10.0.0.7:1", "172.17.0.1:1"]
    assert own_addresses("[::]:1", "") == ["10.0.0.7:1", "172.17.0.1:1", "[2001:db8::7]:1"]


def machine(monkeypatch: pytest.MonkeyPatch, *ips: str, towards: str = "") -> None:
    """A machine with these interfaces: no test can have them for real."""
    import ifaddr

    found = [ifaddr.IP((ip, 0, 0) if ":" in ip else ip, 24, "eth0") for ip in ips]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [ifaddr.Adapter("eth0", "eth0", found)])
    monkeypatch.setattr(
        addresses, "_source_address_for", lambda ip: towards if ":" not in ip else ""
    )


@pytest.mark.parametrize("address", ["h:1", "10.0.0.1:65535", "[::1]:80"])
def test_joined_is_the_reverse_of_endpoint(address: str) -> None:
    assert format_endpoint(*endpoint(address)) == address
