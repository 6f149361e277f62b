"""Transfers against a neighbor that says anything: headers, frames and trailers, right and wrong,
in any order.

Whatever comes, the answer is one verdict; what is delivered is exactly what was sent, once; nothing
is left half-open.
"""

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer import codec
from peer.membership import Membership
from peer.message import DType
from peer.session.interfaces import Key, Role, Shape
from peer.session.mailbox import Mailbox
from peer.session.peers import PeerTable, RunParameters
from peer.session.transfers import Transfers
from peer.v1 import peer_pb2 as pb

SIZE = codec.FRAME + 100
SHAPE = Shape(kind="state", layout=bytes(32), parts=1, dtype=DType.FLOAT32, nbytes=SIZE)
PAYLOAD = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)
WRONG = {
    "protocol": 9,
    "run": "another",
    "sender": "c",
    "receiver": "c",
    "incarnation": 2,
    "kind": "model",
    "layout": b"x" * 32,
    "parts": 2,
    "dtype": pb.DTYPE_FLOAT16,
    "bytes": SIZE + 4,
    "withheld": True,
    "role": pb.ROLE_SAY,
}


class Kept:
    def __init__(self):
        self.data = bytearray(SIZE)

    async def write(self, offset, frame):
        self.data[offset : offset + len(frame)] = frame


class Machine(RuleBasedStateMachine):
    """It is the open phase itself."""

    shape, expected, opened_at = SHAPE, frozenset("a"), 0.0

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.delivered, self.sequence, self.round, self.opened = [], 0, 0, False
        self.runner.run(self.start())

    async def start(self):
        table = PeerTable(
            me="b",
            ids={name: name for name in "abc"},
            parameters=RunParameters(run="run", roster=1),
            incarnation=1,
            membership=Membership.of("b", ["a"], 5.0),
        )
        table.membership.agree("a", live_from=0, incarnation=1, round=0, now=0.0)
        table.states["a"].renew(1)
        nobody: Any = None  # it sends nothing
        self.transfers = Transfers(table, Mailbox(), nobody)
        self.transfers.begin(0)

    def teardown(self):
        self.runner.close()

    @property
    def key(self):
        return Key(self.round, 0, Role.MIX)

    def receive(self, peer, message):
        return Kept()

    def complete(self, peer, message, sink):
        self.delivered.append(((peer, message.round), bytes(sink.data)))

    def header(self, **changes):
        self.sequence += 1
        usual = {
            "protocol": codec.PROTOCOL,
            "run": "run",
            "sender": "a",
            "receiver": "b",
            "incarnation": 1,
            "sequence": self.sequence,
            "round": self.round,
            "role": pb.ROLE_MIX,
            "kind": "state",
            "layout": bytes(32),
            "parts": 1,
            "dtype": pb.DTYPE_FLOAT32,
            "bytes": SIZE,
        }
        return pb.Header(**{**usual, **changes}).SerializeToString()

    def say(self, messages, caller="a"):
        async def stream():
            for message in messages:
                yield message

        async def receive():
            async with asyncio.timeout(5):
                return await self.transfers.receive(caller, stream())

        return codec.decode(pb.Verdict, self.runner.run(receive())).code

    def frames(self):
        return [PAYLOAD[offset : offset + length] for offset, length in codec.frames(SIZE)]

    def whole(self):
        """All that follows a header."""
        return [*self.frames(), pb.Trailer(bytes=SIZE).SerializeToString()]

    @rule()
    def opens(self):
        if not self.opened:
            self.runner.run(self.open())
            self.opened = True

    async def open(self):
        self.transfers.open(self)

    @rule()
    def next_round(self):
        self.round, self.opened = self.round + 1, False
        self.runner.run(self.begin())

    async def begin(self):
        self.transfers.begin(self.round)

    @rule()
    def sends_well(self):
        if not self.opened:
            return
        before = len(self.delivered)
        code = self.say([self.header(), *self.whole()])
        new = ("a", self.round) not in [key for key, _ in self.delivered[:before]]
        assert code == (pb.CODE_OK if new else pb.CODE_DUPLICATE)
        assert len(self.delivered) == before + new

    @rule(field=st.sampled_from(sorted(WRONG)))
    def sends_another_header(self, field):
        if self.opened:
            before = len(self.delivered)
            code = self.say([self.header(**{field: WRONG[field]}), *self.whole()])
            assert code != pb.CODE_OK
            assert len(self.delivered) == before

    @rule(junk=st.binary(max_size=200))
    def sends_junk(self, junk):
        assert self.say([junk]) not in (pb.CODE_OK, pb.CODE_UNSPECIFIED)

    @rule(cut=st.integers(0, 2), tail=st.binary(max_size=40))
    def breaks_off(self, cut, tail):
        if self.opened:
            before = len(self.delivered)
            code = self.say([self.header(), *self.frames()[:cut], *([tail] if tail else [])])
            assert code != pb.CODE_OK
            assert len(self.delivered) == before

    @rule()
    def sends_as_an_earlier_process(self):
        assert self.say([self.header(incarnation=0), *self.whole()]) == pb.CODE_INCARNATION

    @rule()
    def gives_up_in_the_trailer(self):
        if self.opened:
            before = len(self.delivered)
            assert (
                self.say([self.header(), *self.frames(), pb.Trailer(bytes=1).SerializeToString()])
                != pb.CODE_OK
            )
            assert len(self.delivered) == before

    @rule()
    def repeats_a_sequence_number(self):
        if self.sequence and self.opened:
            again = self.header(sequence=self.sequence)
            self.sequence -= 1
            self.say([again])
            assert self.say([again, *self.whole()]) == pb.CODE_DUPLICATE

    @rule(caller=st.sampled_from(["b", "c", "stranger"]))
    def speaks_for_somebody_else(self, caller):
        assert self.say([self.header()], caller=caller) == pb.CODE_IDENTITY

    @invariant()
    def what_was_delivered_is_what_was_sent_once(self):
        keys = [key for key, _ in self.delivered]
        assert len(keys) == len(set(keys))
        assert all(data == PAYLOAD for _, data in self.delivered)

    @invariant()
    def nothing_is_left_half_open(self):
        assert not self.transfers.mailbox._receiving
        assert not self.transfers.mailbox._parked


TestTransfers = Machine.TestCase
TestTransfers.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.fixture
def machine():
    """For sure, and not only where hypothesis happens to go."""
    made = Machine()
    made.opens()
    yield made
    made.teardown()


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_header_is_refused(machine, field):
    machine.sends_another_header(field)


def test_a_sequence_number_counts_once(machine):
    machine.breaks_off(cut=1, tail=b"")
    machine.repeats_a_sequence_number()


def test_an_earlier_process_is_not_heard(machine):
    machine.sends_as_an_earlier_process()
