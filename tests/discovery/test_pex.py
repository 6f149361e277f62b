"""Peer exchange: who may ask, what is believed, what is kept; and that one address is enough."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.bare_nodes import RUN, Node, People, announcement, until
from kit.wire import Recorder
from peer import codec
from peer.discovery import DiscoveryContext
from peer.discovery.pex import BURST, FILE, PER_SECOND, TURN_SECONDS, PeerExchange
from peer.discovery.resolver import Resolver
from peer.errors import Malformed, Unreachable
from peer.identity.roster import Member, Roster
from peer.transport.grpc import Grpc
from peer.v1 import peer_pb2 as pb

BOTH = ["static", "exchange"]
OLD, NEW = 1_000, 2_000


@pytest.fixture
def exchange(people: People) -> PeerExchange:
    """Alice's, without a network."""
    return PeerExchange(
        DiscoveryContext(
            roster=people.roster(), run=RUN, me=people.id("alice"), identity=people["alice"]
        )
    )


def said(people: People, *known: pb.Announcement, by: str = "bob", run: str = RUN) -> pb.Peers:
    return pb.Peers(run=run, sender=people.id(by), known=known)


# -- one address is enough


async def test_from_one_address_of_a_member_that_is_no_neighbor(people: People) -> None:
    """alice and bob are neighbors and know carol's address only; carol's neighbor is dave, whom
    nobody knows.
    """
    async with AsyncExitStack() as stack:
        carol = Node(people, "carol", ["dave"], BOTH)
        roster = people.roster(carol=await carol.serve())
        alice, bob = (
            Node(people, name, [other], BOTH, roster=roster)
            for name, other in (("alice", "bob"), ("bob", "alice"))
        )
        for node in (carol, alice, bob):
            await stack.enter_async_context(node.alive())
        await until(lambda: alice.live("bob") and bob.live("alice"))
        assert alice.table.states["bob"].address == bob.bound
        assert (alice.source("bob"), bob.source("alice")) == ("exchange", "exchange")
        assert not carol.live("alice"), "who is asked for addresses is no neighbor because of it"


async def test_who_moved_is_found_again_by_its_neighbor(people: People) -> None:
    async with AsyncExitStack() as stack:
        carol = Node(people, "carol", ["dave"], BOTH)
        roster = people.roster(carol=await carol.serve())
        alice = Node(people, "alice", ["bob"], BOTH, roster=roster)
        for node in (carol, alice):
            await stack.enter_async_context(node.alive())
        async with Node(people, "bob", ["alice"], BOTH, roster=roster).alive() as bob:
            await until(lambda: alice.live("bob") and bob.live("alice"))
            before = bob.bound
        async with Node(
            people, "bob", ["alice"], BOTH, roster=roster, listen="127.0.0.2:0"
        ).alive() as bob:
            await until(
                lambda: bob.live("alice") and alice.table.states["bob"].address == bob.bound,
                40,
            )
            assert bob.bound != before


async def test_names_that_nobody_answers_for_keep_nobody_else_from_being_asked(
    people: People,
) -> None:
    """bob announces four names whose name server is silent; only carol, who is no neighbor, knows
    where dave is.
    """
    silent = threading.Event()

    def never(*_: Any, **__: Any) -> list[Any]:
        silent.wait()
        return []

    async with AsyncExitStack() as stack:
        stack.callback(silent.set)
        carol = Node(people, "carol", ["bob"], BOTH)
        roster = people.roster(carol=await carol.serve())
        alice = Node(
            people,
            "alice",
            ["bob", "dave"],
            BOTH,
            roster=roster,
            names=Resolver(never, seconds=10 * TURN_SECONDS),
        )
        dave = Node(people, "dave", ["alice"], BOTH, roster=roster)
        alice.exchange.take(
            [announcement(people["bob"], OLD, *(f"{n}.silent:1" for n in range(4)))]
        )
        for node in (carol, dave, alice):
            await stack.enter_async_context(node.alive())
        await until(lambda: alice.live("dave"))


async def test_a_lie_about_the_own_address_reaches_nobody(people: People) -> None:
    """bob announces carol's address for himself, and then his own: carol's server is asked nothing
    in between.
    """
    async with AsyncExitStack() as stack:
        service, carol = Recorder.open(), Grpc(people["carol"], "127.0.0.1:0")
        at = await carol.serve(service)
        stack.push_async_callback(carol.close, 0)
        bob = Node(people, "bob", ["alice"], BOTH)
        roster = people.roster(bob=await bob.serve())
        alice = Node(people, "alice", ["bob"], ["exchange"], roster=roster)
        alice.exchange.take([announcement(people["bob"], OLD, at)])
        await stack.enter_async_context(alice.alive())
        await until(
            lambda: "certificate of another node" in alice.error("bob"),
            what=lambda: alice.error("bob"),
        )
        assert not alice.live("bob")
        alice.exchange.take([announcement(people["bob"], NEW, bob.bound)])
        bob.exchange.take([announcement(people["alice"], OLD, alice.bound)])
        await stack.enter_async_context(bob.alive())
        await until(lambda: alice.live("bob"))
        assert (service.calls, service.callers) == ([], [])


# -- who may ask


@pytest.mark.parametrize(
    ("caller", "sender", "run", "code"),
    [
        ("mallory", "mallory", RUN, pb.CODE_NOT_A_MEMBER),
        ("mallory", "bob", RUN, pb.CODE_IDENTITY),
        ("bob", "carol", RUN, pb.CODE_IDENTITY),
        ("bob", "bob", "another", pb.CODE_RUN),
    ],
)
async def test_only_members_that_are_who_they_say_are_answered(
    people: People, caller: str, sender: str, run: str, code: int
) -> None:
    node = Node(people, "alice", ["dave"], BOTH)
    question = codec.encode(said(people, by=sender, run=run))
    with pytest.raises(Malformed) as caught:
        await node.session.call(people.id(caller), "Peers", question)
    assert caught.value.code == code


async def test_a_member_is_answered_though_it_is_no_neighbor(people: People) -> None:
    node = Node(people, "alice", ["dave"], BOTH)
    await node.addresses.announce(["10.0.0.1:7443"])
    reply = codec.decode(
        pb.Peers, await node.session.call(people.id("bob"), "Peers", codec.encode(said(people)))
    )
    assert [(each.member, [*each.addresses]) for each in reply.known] == [
        (people.id("alice"), ["10.0.0.1:7443"])
    ]
    heartbeat = pb.Beat(run=RUN, sender=people.id("bob"), incarnation=1)
    with pytest.raises(Malformed) as caught:
        await node.session.call(people.id("bob"), "Beat", codec.encode(heartbeat))
    assert caught.value.code == pb.CODE_NOT_A_NEIGHBOR, "for anything else it has to be one"


async def test_a_stranger_with_a_certificate_learns_nothing_over_the_wire(people: People) -> None:
    node = Node(people, "alice", ["dave"], BOTH)
    async with node.alive():
        stranger = Grpc(people["mallory"], "127.0.0.1:0").link(people.id("alice"), node.bound)
        with pytest.raises(Unreachable, match="not in this run's roster"):
            await stranger.call("Peers", codec.encode(said(people, by="mallory")), 10)
        await stranger.close()


async def test_a_node_without_exchange_says_so(people: People) -> None:
    node = Node(people, "alice", ["dave"], ["static"])
    with pytest.raises(Malformed, match="does not exchange addresses"):
        await node.session.call(people.id("bob"), "Peers", codec.encode(said(people)))


def test_who_asks_too_often_has_to_wait(exchange: PeerExchange, people: People) -> None:
    bob, carol = people.id("bob"), people.id("carol")
    assert [exchange._may_ask(bob, 0.0) for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    assert exchange._may_ask(carol, 0.0), "the others don't"
    assert not exchange._may_ask(bob, 0.1 / PER_SECOND)
    assert exchange._may_ask(bob, 2.0)
    assert [exchange._may_ask(bob, 1e6) for _ in range(BURST + 1)][-1] is False


# -- what is believed


async def test_the_newest_announcement_of_a_member_counts(
    exchange: PeerExchange, people: People
) -> None:
    bob = people["bob"]
    exchange.take([announcement(bob, NEW, "10.0.0.2:1"), announcement(bob, OLD, "10.0.0.3:1")])
    exchange.take([announcement(bob, NEW, "10.0.0.4:1")])
    assert await exchange.addresses(bob.id) == ("10.0.0.2:1",)
    exchange.take([announcement(bob, NEW + 1, "10.0.0.5:1", "[2001:db8::1]:2")])
    assert await exchange.addresses(bob.id) == ("10.0.0.5:1", "[2001:db8::1]:2")


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ["10.6.6.6:1"]},
        {"issued": NEW + 7},
        {"signature": b""},
        {"signature": b"x" * 70},
        {"spki": b""},
        {"spki": "carol"},
        {"member": "carol"},
        {"addresses": ["10.0.0.2", "1:10.0.0.3:1"]},
    ],
    ids=str,
)
async def test_nobody_can_announce_for_somebody_else(
    exchange: PeerExchange, people: People, change: dict[str, Any]
) -> None:
    """Not with any part of an announcement that was signed; what came before is kept, what follows
    is not looked at.
    """
    carol = people["carol"]
    for field, of in (("spki", carol.spki), ("member", carol.id)):
        change = {**change, field: of} if change.get(field) == "carol" else change
    exchange.take([announcement(people["bob"], OLD, "10.0.0.2:1")])
    forged = announcement(people["bob"], NEW, "10.0.0.2:1", **change)
    later = announcement(people["dave"], NEW, "10.0.0.9:1")
    with pytest.raises(Malformed, match="not signed"):
        exchange.take([forged, later])
    assert await exchange.addresses(people.id("bob")) == ("10.0.0.2:1",)
    assert people.id("carol") not in exchange.book
    assert people.id("dave") not in exchange.book


def test_a_member_can_not_sign_for_another_with_its_own_key(
    exchange: PeerExchange, people: People
) -> None:
    """Whole and well signed, only that the key is not bob's."""
    with pytest.raises(Malformed, match="not signed"):
        exchange.take(
            [announcement(replace(people["carol"], id=people.id("bob")), NEW, "10.6.6.6:1")]
        )
    assert not exchange.book


def test_addresses_are_for_ids_of_the_roster_only(exchange: PeerExchange, people: People) -> None:
    exchange.take([announcement(people["mallory"], NEW, "10.6.6.6:1")])
    assert not exchange.book


async def test_a_node_whose_clock_was_ahead_is_believed_again(people: People) -> None:
    """What it announces now looks older than what it announced before; it hears that from others,
    and goes later.
    """
    future = 1 << 50
    before = announcement(people["alice"], future, "10.0.0.1:1")
    own, other = (
        PeerExchange(
            DiscoveryContext(
                roster=people.roster(), run=RUN, me=people.id(name), identity=people[name]
            )
        )
        for name in ("alice", "bob")
    )
    other.take([before])
    await own.announce(["10.0.0.2:2"])
    other.take(own._tell(()).known)
    assert await other.addresses(people.id("alice")) == ("10.0.0.1:1",)
    own.take(other._tell(()).known)
    other.take(own._tell(()).known)
    assert await other.addresses(people.id("alice")) == ("10.0.0.2:2",)


def test_a_replayed_announcement_of_the_own_does_not_change_it(
    exchange: PeerExchange, people: People
) -> None:
    exchange.take([announcement(people["alice"], NEW, "10.6.6.6:1")])
    assert people.id("alice") not in exchange.book


# -- limits


@pytest.mark.parametrize(
    "bad",
    [
        pb.Announcement(member="a", addresses=["h:1"] * 5),
        pb.Announcement(member="a", addresses=["h:0"]),
        pb.Announcement(member="a", addresses=["h"]),
        pb.Announcement(member="a", addresses=["h\x1b[2J:1"]),
        pb.Announcement(member="a", addresses=["x" * 300 + ":1"]),
        pb.Announcement(member="../a", addresses=["h:1"]),
        pb.Announcement(member="a", issued=1 << 63),
        pb.Announcement(member="a", spki=b"x" * 999),
        pb.Peers(run="r", sender="a", known=[pb.Announcement(member="a")] * 65),
        pb.Peers(run="r", sender="a", known=[pb.Announcement(member="a", addresses=["nonsense"])]),
        pb.Peers(run="r", sender="a", wanted=["a"] * 65),
        pb.Peers(run="r", sender="a", wanted=["a b"]),
    ],
    ids=lambda it: str(it)[:60],
)
def test_what_is_outside_the_limits_is_malformed(bad: Any) -> None:
    with pytest.raises(Malformed):
        codec.decode(type(bad), bad.SerializeToString())


def test_the_longest_announcements_fit_a_message() -> None:
    longest = pb.Announcement(
        member="a" * 52,
        issued=1 << 62,
        addresses=["x" * 256 + ":65535"] * 4,
        spki=bytes(91),
        signature=bytes(72),
    )
    whole = pb.Peers(run="r" * 26, sender="a" * 52, known=[longest] * 64, wanted=["a" * 52] * 64)
    assert codec.decode(pb.Peers, codec.encode(whole)) == whole


def test_of_a_large_roster_what_is_wanted_is_told_first(people: People) -> None:
    many = [Member(f"n{i}", f"id-{i}") for i in range(500)]
    it = PeerExchange(DiscoveryContext(roster=Roster(1, 0, tuple(many)), run=RUN, me="id-0"))
    it.book = {
        member.id: pb.Announcement(member=member.id, issued=1, addresses=["h:1"]) for member in many
    }
    told = [each.member for each in it._tell(["id-400", "id-3", "nobody"]).known]
    assert told[:3] == ["id-0", "id-400", "id-3"]
    assert len(set(told)) == codec.MAX_ANNOUNCEMENTS


# -- the book


async def test_what_was_learned_outlives_the_process(people: People, tmp_path: Path) -> None:
    node = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    async with node.alive():
        node.exchange.take([announcement(people["bob"], NEW, "10.0.0.2:1")])
        await until((tmp_path / FILE).exists)
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    again = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    async with again.alive():
        await until(lambda: again.exchange.book.keys() >= {people.id("bob")})
        assert await again.addresses.addresses(people.id("bob")) == ["10.0.0.2:1"]
    assert not again.warnings


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "another", "announcements": []}',
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    + [
        b'{"format": "peerpoise peer book 1", "announcements": [%s]}' % each
        for each in (b'"!"', b"3", b'"AAAA"')
    ],
    ids=lambda content: content[:50].decode(errors="replace"),
)
async def test_a_damaged_book_is_a_warning_and_an_empty_book(
    people: People, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    node = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    async with node.alive():
        await until(lambda: bool(node.warnings))
    assert "is damaged and not used" in node.warnings[0]
    assert not node.exchange.book.keys() - {people.id("alice")}


async def test_a_forged_book_is_a_damaged_one(people: People, tmp_path: Path) -> None:
    node = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    node.exchange.take([announcement(people["bob"], NEW, "10.0.0.2:1")])
    await node.exchange._save()
    document = json.loads((tmp_path / FILE).read_text())
    forged = announcement(
        people["bob"], NEW, "10.0.0.2:1", addresses=["10.6.6.6:1"]
    ).SerializeToString()
    document["announcements"] = [base64.b64encode(forged).decode()]
    (tmp_path / FILE).write_text(json.dumps(document))
    again = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    async with again.alive():
        await until(lambda: bool(again.warnings))
    assert people.id("bob") not in again.exchange.book


async def test_who_left_the_roster_is_dropped_from_the_book(people: People, tmp_path: Path) -> None:
    node = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path)
    node.exchange.take([announcement(people[name], NEW, "10.0.0.2:1") for name in ("bob", "carol")])
    await node.exchange._save()
    smaller = Roster(2, 0, tuple(each for each in people.roster().members if each.name != "carol"))
    again = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path, roster=smaller)
    async with again.alive():
        await until(lambda: people.id("bob") in again.exchange.book)
    assert people.id("carol") not in again.exchange.book
    assert not again.warnings


async def test_a_disk_that_refuses_costs_a_warning_only(people: People, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    node = Node(people, "alice", ["bob"], ["exchange"], folder=tmp_path / "file")
    node.exchange.take([announcement(people["bob"], NEW, "10.0.0.2:1")])
    await node.exchange._save()
    assert "can't be written" in node.warnings[0]
    assert await node.exchange.addresses(people.id("bob"))


async def test_without_an_identity_nothing_is_announced(people: People) -> None:
    it = PeerExchange(DiscoveryContext(roster=people.roster(), run=RUN, me=people.id("alice")))
    await it.announce(["10.0.0.1:1"])
    assert not it.book
