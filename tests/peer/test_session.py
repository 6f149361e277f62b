"""Handshakes and beats against neighbors that lie; real keys, one session, no network."""

import asyncio
import random
import resource
from contextlib import suppress

import pytest

from kit.fuzz import mutated
from peer import codec
from peer.discovery.static import Static
from peer.errors import Malformed, RemoteError
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import verify_welcome
from peer.membership import Membership, Presence
from peer.session.mailbox import Mailbox
from peer.session.peers import REPLAY_WINDOW, PeerState, PeerTable, RunParameters
from peer.session.session import Session
from peer.transport.memory import Memory, Network
from peer.v1 import peer_pb2 as pb

TERMS = RunParameters(
    run="run",
    roster=1,
    digests={"roster": b"r" * 32, "layout": bytes(32), "inputs": b"i" * 32, "start": b"s" * 32},
    words={"inputs": "values 0…1, shape 1x8x8"},
)


class Statements:
    """A witness that writes down what it is asked."""

    def __init__(self):
        self.challenges, self.observed = [], []

    def current(self):
        return pb.SignedHead(sequence=3, digest=b"d" * 32, label=b"L" * 32)

    def observe(self, peer, statement):
        self.observed.append((peer, statement.sequence))
        return pb.SignedHead(sequence=1, digest=b"e" * 32)

    def challenge(self, statement):
        self.challenges.append(statement)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return {name: ca.enrol(folder / name) for name in ("a", "b", "stranger")}


@pytest.fixture
async def session(people):
    """b's, whose only neighbor is a."""
    table = PeerTable(
        me="b",
        ids={name: identity.id for name, identity in people.items()},
        parameters=TERMS,
        incarnation=7,
        membership=Membership.of("b", ["a"], 10.0),
    )
    it = Session(
        table,
        identity=people["b"],
        transport=Memory(Network(), people["b"].id),
        mailbox=Mailbox(),
        discovery=Static({}),
        witness=Statements(),
        version="1.0",
    )
    table.states["a"].proven = True
    return it


def differing(**changes):
    """A change of the digests in a Hello; None: this one is left out."""
    digests = {**TERMS.digests, **changes}
    return {"digests": {name: digest for name, digest in digests.items() if digest}}


def hello(people, **changes):
    usual = {
        "protocol": codec.PROTOCOL,
        "run": "run",
        "roster": 1,
        "sender": people["a"].id,
        "receiver": people["b"].id,
        "incarnation": 1,
        "nonce": b"n" * 32,
        "digests": TERMS.digests,
        "round": -1,
        "propose": True,
        "order": 1,
    }
    return pb.Hello(**{**usual, **changes})


def enter(session, round):
    session.transfers.begin(round)
    session.progress.running = True


async def greet(session, message, caller=None):
    return codec.decode(
        pb.Welcome, await session.call(caller or message.sender, "Handshake", codec.encode(message))
    )


async def test_a_neighbor_is_welcomed_with_a_proof_and_an_edge(session, people):
    welcome = await greet(session, hello(people))
    assert welcome.code == pb.CODE_OK
    verify_welcome(
        welcome.spki,
        welcome.signature,
        nonce=b"n" * 32,
        client_id=people["a"].id,
        run="run",
        expected_id=people["b"].id,
    )
    assert session.table.membership.live(0) == {"a"}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (
            {"protocol": 99, "version": "2.0"},
            pb.CODE_PROTOCOL,
            "(b: 3, peerpoise 1.0; a: 99, peerpoise 2.0.)",
        ),
        ({"run": "another"}, pb.CODE_RUN, "(b: run; a: another.)"),
        (
            {**differing(roster=b"x" * 32), "roster": 5},
            pb.CODE_ROSTER,
            "(b: version 1; a: version 5.)",
        ),
        (differing(layout=b"x" * 32), pb.CODE_LAYOUT, "different shapes"),
        (differing(validation=b"x" * 32), pb.CODE_VALIDATION, "(b: no validation; a: "),
        (differing(start=b"x" * 32), pb.CODE_START, "different parameters"),
        (differing(inputs=b"x" * 32), pb.CODE_INPUTS, "(b: values 0…1, shape 1x8x8; a: "),
        (differing(inputs=None), pb.CODE_INPUTS, "task.value_range"),
        (differing(prompts=b"x" * 32), pb.CODE_DIFFERENT, "a: prompts 7878"),
        (differing(ok=b"x" * 32), pb.CODE_DIFFERENT, "a: ok 7878"),
        ({"receiver": "somebody"}, pb.CODE_IDENTITY, "certificate"),
    ],
)
async def test_a_refusal_says_what_differs_and_signs_nothing(session, people, change, code, says):
    welcome = await greet(session, hello(people, **change))
    assert welcome.code == code
    assert says in welcome.detail
    assert not welcome.signature
    assert session.table.membership.live(0) == frozenset()


async def test_what_a_task_says_of_its_inputs_fits_into_a_refusal():
    """A task of somebody's own may say anything; a neighbor could not decode it otherwise."""
    terms = RunParameters(
        run="run",
        roster=1,
        digests={"inputs": b"i" * 32},
        words={"inputs": "unit \x1b[31m" + "mg\n" * 400},
    )
    message = pb.Hello(run="run", digests={"inputs": b"x" * 32})
    code, detail = terms.difference(message, "b", "a")
    reply = pb.Welcome(detail=detail)
    reply.code = code
    assert codec.decode(pb.Welcome, codec.encode(reply)).detail == detail
    assert "task.value_range" in detail


async def test_nothing_is_signed_for_who_claims_another_id_or_is_no_neighbor(session, people):
    for message, caller in (
        (hello(people), people["stranger"].id),
        (hello(people, sender=people["stranger"].id), people["stranger"].id),
    ):
        with pytest.raises(Malformed):
            await greet(session, message, caller)


async def test_an_edge_is_not_agreed_on_with_who_can_not_be_dialed_back(session, people):
    session.table.states["a"].proven = False
    assert (await greet(session, hello(people))).code == pb.CODE_NOT_READY
    assert session.table.membership.live(0) == frozenset()
    assert session.table.membership.neighbors["a"].trouble == "", "that is the caller's"


async def test_who_can_not_be_dialed_is_told_why(session, people):
    """In the answers to its handshakes and heartbeats: it can't know otherwise."""
    state, why = session.table.states["a"], "Nothing answers at h:1."
    state.proven, state.unreached = False, why
    welcome = await greet(session, hello(people))
    assert (welcome.code, welcome.unreached) == (pb.CODE_NOT_READY, why)
    assert (await greet(session, hello(people, nonce=b"2" * 32, propose=False))).unreached == why
    assert session.heartbeats.make("a").unreached == why


async def test_what_a_neighbor_says_of_reaching_this_node_is_shown(session, people):
    neighbor = session.table.membership.neighbors["a"]
    beat = pb.Beat(run="run", sender=people["a"].id, order=1, unreached="Nobody listens at h:1.")
    await session.call(people["a"].id, "Beat", codec.encode(beat))
    assert neighbor.trouble == "a can't reach this node: Nobody listens at h:1."
    beat.unreached, beat.order = "", 2
    await session.call(people["a"].id, "Beat", codec.encode(beat))
    assert neighbor.trouble == "", "it can, again"
    beat.unreached = "\x1b[2J"
    with pytest.raises(Malformed):
        codec.encode(beat)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "2.0"}, ("a", "2.0", True)),
        ({"version": "1.0", "own_code": b"o" * 32}, ("a", "", False)),
        ({"version": "1.0", **differing(layout=b"x" * 32)}, ("a", "", True)),
    ],
)
async def test_software_is_compared_whatever_else_differs(session, people, change, says):
    seen = []
    session.table.observer.software = lambda *given: seen.append(given)
    await greet(session, hello(people, **change))
    assert seen == [says]


async def test_the_same_call_delivered_twice_changes_nothing(session, people):
    first = await greet(session, hello(people))
    enter(session, 5)
    assert await greet(session, hello(people)) == first
    assert session.table.membership.live(0) == {"a"}


async def test_a_handshake_that_was_overtaken_agrees_nothing(session, people):
    """It would move the edge at this end only: the other end has the answer to its later one."""
    await greet(session, hello(people, nonce=b"2" * 32, order=2))
    enter(session, 0)
    late = await greet(session, hello(people, nonce=b"1" * 32, order=1))
    assert (late.code, late.signature) == (pb.CODE_DUPLICATE, b"")
    assert session.table.membership.live(0) == {"a"}


async def test_inside_a_round_the_edge_begins_two_rounds_later(session, people):
    enter(session, 5)
    assert (await greet(session, hello(people, from_round=3))).from_round == 7
    assert session.table.membership.live(6) == frozenset()
    assert session.table.membership.live(7) == {"a"}


async def test_a_newer_process_replaces_an_older_one_never_the_other_way(session, people):
    await greet(session, hello(people))
    await greet(session, hello(people, incarnation=2, propose=False, nonce=b"m" * 32))
    assert session.table.membership.neighbors["a"].presence is Presence.UNKNOWN
    old = await greet(session, hello(people, incarnation=1, nonce=b"o" * 32))
    assert old.code == pb.CODE_INCARNATION


@pytest.mark.parametrize("message", [pb.Beat, pb.Leave])
async def test_a_beat_or_goodbye_of_another_run_is_refused(session, people, message):
    said = message(run="another", sender=people["a"].id, incarnation=1)
    with pytest.raises(Malformed):
        await session.call(people["a"].id, message.DESCRIPTOR.name, codec.encode(said))


async def test_heads_are_exchanged_in_handshakes_and_heartbeats(session, people):
    said = pb.SignedHead(sequence=8, digest=b"h" * 32)
    welcome = await greet(session, hello(people, head=said))
    beat = pb.Beat(run="run", sender=people["a"].id, incarnation=1, order=2, head=said)
    answer = await session.call(people["a"].id, "Beat", codec.encode(beat))
    assert session.heartbeats.witness.observed == [("a", 8), ("a", 8)]
    assert welcome.head == codec.decode(pb.Beat, answer).head == Statements().current()
    assert welcome.remembered.sequence == 1


def test_a_head_beyond_what_a_ledger_can_hold_is_malformed():
    with pytest.raises(Malformed):
        codec.decode(pb.SignedHead, pb.SignedHead(sequence=1 << 63).SerializeToString())


def test_sequence_numbers_come_in_any_order_each_once():
    contact = PeerState("a")
    assert [contact.replayed(n) for n in (2, 1, 3, 1, 2, 3)] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    for n in range(4, 4 * REPLAY_WINDOW):
        assert not contact.replayed(n)
    assert contact.replayed(5)
    assert len(contact._seen) <= 2 * REPLAY_WINDOW
    contact.renew(2)
    assert not contact.replayed(5)


class Work:
    progress = 0


async def test_beats_do_not_count_chunks_of_work(session):
    """Their number is the size of a secret batch; whoever asks often still sees one tick in a
    quarter of a second.
    """
    session.progress.work = Work()
    seen = set()
    for _ in range(100):
        session.progress.work.progress += 7
        session.table.moved += 7
        pulse = session.heartbeats.make("a")
        seen.add(pulse.progress)
        assert pulse.idle_ms % 250 == 0
    assert len(seen) <= 2


async def test_a_hundred_thousand_fuzzed_calls_raise_only_the_error_tree_and_memory_stays_flat(
    session, people
):
    """Through both gates a neighbor has: what it says is garbled, who it is is not."""
    a, rng = people["a"].id, random.Random(11)
    head = pb.SignedHead(sequence=2, digest=bytes(32), label=bytes(32))
    usual = {"run": "run", "sender": a, "incarnation": 1}
    transfer = {
        "protocol": codec.PROTOCOL,
        "receiver": people["b"].id,
        "role": pb.ROLE_MIX,
        "parts": 1,
    }
    valid = {
        "Handshake": codec.encode(hello(people, propose=False, head=head)),
        "Beat": codec.encode(pb.Beat(**usual, live=[a], waiting_for=[a], head=head)),
        "Leave": codec.encode(pb.Leave(**usual)),
        "Transfer": codec.encode(
            pb.Header(
                **usual,
                **transfer,
                kind="state",
                layout=bytes(32),
                dtype=pb.DTYPE_FLOAT32,
                bytes=400,
            )
        ),
    }
    seen = dict.fromkeys(valid, 0)

    async def stream(*messages):
        for message in messages:
            yield message

    async def say(name, data):
        if name != "Transfer":
            return await session.call(a, name, data)
        frames = stream(data, rng.randbytes(rng.choice((400, 7))))
        receiving = asyncio.ensure_future(session.transfer(a, frames))
        await asyncio.sleep(0)
        if not receiving.done():  # parked: its phase may still come
            receiving.cancel()
            return await asyncio.wait({receiving})
        return codec.decode(pb.Verdict, await receiving)

    async def fuzz(times):
        for i in range(times):
            name = list(valid)[i % len(valid)]
            with suppress(RemoteError):
                await say(name, mutated([valid[name]], rng))
                seen[name] += 1

    await fuzz(5_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await fuzz(95_000)
    assert min(seen.values()) > 50, "some must get through the codec"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB
