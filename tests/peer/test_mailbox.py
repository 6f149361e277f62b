"""The mailbox: sentences of its docstring, and a state machine against a naive oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.message import DType
from peer.session.interfaces import Incoming, Key, Role, Shape, Sink
from peer.session.mailbox import PARKED_PER_PEER, Admission, Mailbox

SHAPE = Shape(kind="state", layout=bytes(32), parts=1, dtype=DType.FLOAT32, nbytes=40)


@dataclass(frozen=True)
class Opened:
    """An open phase, as far as a mailbox asks."""

    key: Key
    expected: frozenset[str]
    shape: Shape = SHAPE
    opened: float = 0.0

    def receive(self, peer: str, message: Incoming) -> Sink:
        raise AssertionError("a mailbox only decides")

    def complete(self, peer: str, message: Incoming, sink: Sink) -> None:
        raise AssertionError("a mailbox only decides")


def opened(
    round: int = 0, phase: int = 0, role: Role = Role.MIX, peers: str = "ab"
) -> tuple[Mailbox, Key]:
    box, key = Mailbox(), Key(round, phase, role)
    box.begin(round)
    box.open(Opened(key, frozenset(peers)))
    return box, key


def test_an_open_phase_admits_what_it_expects_once():
    box, key = opened()
    assert box.offer("a", key, SHAPE) is Admission.ADMIT
    assert box.offer("a", key, SHAPE) is Admission.BUSY
    box.delivered("a", key)
    assert box.offer("a", key, SHAPE) is Admission.DUPLICATE


def test_a_broken_transfer_may_come_again():
    box, key = opened()
    box.offer("a", key, SHAPE)
    box.broken("a", key)
    assert box.offer("a", key, SHAPE) is Admission.ADMIT


def test_another_kind_is_refused_never_waited_out():
    box, key = opened()
    assert box.offer("a", key, replace(SHAPE, kind="model")) is Admission.KIND
    assert box.offer("a", replace(key, role=Role.SAY), SHAPE) is Admission.KIND


def test_a_peer_chooses_no_shapes():
    box, key = opened()
    for wrong in (
        replace(SHAPE, nbytes=1 << 40),
        replace(SHAPE, layout=b"x" * 32),
        replace(SHAPE, parts=2),
        replace(SHAPE, dtype=DType.FLOAT16),
    ):
        assert box.offer("a", key, wrong) is Admission.LAYOUT


def test_only_an_answer_can_be_withheld_and_then_nothing_follows():
    box, key = opened(role=Role.ANSWER)
    empty = replace(SHAPE, nbytes=0)
    assert box.offer("a", key, SHAPE, withheld=True) is Admission.KIND
    assert box.offer("a", key, empty, withheld=True) is Admission.ADMIT
    box, key = opened(role=Role.MIX)
    assert box.offer("a", key, empty, withheld=True) is Admission.KIND


def test_a_phase_to_come_is_parked_and_admitted_when_it_opens():
    box, _ = opened(phase=0, role=Role.QUESTION)
    later = Key(0, 1, Role.MIX)
    assert box.offer("a", later, SHAPE) is Admission.PARK
    assert box.offer("a", later, SHAPE, parked=True) is Admission.PARK
    box.open(Opened(later, frozenset("a")))
    assert box.offer("a", later, SHAPE, parked=True) is Admission.ADMIT


def test_the_next_round_is_parked_the_one_after_refused():
    box, _ = opened()
    assert box.offer("a", Key(1, 0, Role.MIX), SHAPE) is Admission.PARK
    assert box.offer("a", Key(2, 0, Role.MIX), SHAPE) is Admission.AHEAD


def test_at_most_one_is_parked_per_phase_and_few_per_peer():
    box, _ = opened(phase=0, role=Role.QUESTION)
    assert box.offer("a", Key(1, 0, Role.MIX), SHAPE) is Admission.PARK
    assert box.offer("a", Key(1, 0, Role.MIX), SHAPE) is Admission.BUSY
    for phase in range(1, PARKED_PER_PEER):
        assert box.offer("a", Key(1, phase, Role.MIX), SHAPE) is Admission.PARK
    assert box.offer("a", Key(1, 9, Role.MIX), SHAPE) is Admission.BUSY
    assert box.offer("b", Key(1, 9, Role.MIX), SHAPE) is Admission.PARK


def test_earlier_rounds_and_left_phases_are_stale():
    box, key = opened(round=3, phase=1)
    assert box.offer("a", Key(2, 1, Role.MIX), SHAPE) is Admission.STALE
    box.close(key)
    assert box.offer("a", key, SHAPE) is Admission.STALE
    box.open(Opened(Key(3, 2, Role.MIX), frozenset("a")))
    assert box.offer("b", key, SHAPE) is Admission.STALE


def test_a_question_stays_answerable_until_the_round_ends():
    box, key = opened(role=Role.QUESTION)
    box.open(Opened(Key(0, 1, Role.MIX), frozenset("ab")))
    assert box.offer("b", key, SHAPE) is Admission.ADMIT
    box.begin(1)
    assert box.offer("b", key, SHAPE) is Admission.STALE


def test_an_answer_nobody_asked_for_is_never_parked():
    box, _ = opened(role=Role.QUESTION)
    assert box.offer("a", Key(0, 0, Role.ANSWER), SHAPE) is Admission.STALE
    assert box.offer("a", Key(1, 0, Role.ANSWER), SHAPE) is Admission.KIND


def test_who_was_not_live_when_the_phase_opened_is_stale():
    box, key = opened(peers="a")
    assert box.offer("b", key, SHAPE) is Admission.STALE


def test_async_admits_up_to_tau_rounds_old_and_no_more():
    box = Mailbox(staleness=2)
    box.begin(5)
    box.open(Opened(Key(5, 0, Role.MIX), frozenset("ab")))
    assert box.offer("a", Key(3, 0, Role.MIX), SHAPE) is Admission.ADMIT
    assert box.offer("b", Key(2, 0, Role.MIX), SHAPE) is Admission.STALE
    assert box.offer("b", Key(9, 0, Role.MIX), SHAPE) is Admission.ADMIT


class MailboxMachine(RuleBasedStateMachine):
    """Random neighbors against one mailbox; the oracle is a plain record of what was admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Mailbox()
        self.box.begin(0)
        self.round = 0
        self.open: set[Key] = set()
        self.inside: set[tuple[str, Key]] = set()
        self.parked: list[tuple[str, Key]] = []
        self.whole: set[tuple[str, Key]] = set()

    @rule(phase=st.integers(0, 2), role=st.sampled_from(list(Role)))
    def opens(self, phase: int, role: Role) -> None:
        key = Key(self.round, phase, role)
        self.box.open(Opened(key, frozenset("ab")))
        self.open.add(key)

    @rule()
    def next_round(self) -> None:
        self.round += 1
        self.box.begin(self.round)
        self.open.clear()
        self.inside.clear()

    @rule(
        peer=st.sampled_from("abc"),
        ahead=st.integers(-2, 3),
        phase=st.integers(0, 2),
        role=st.sampled_from(Role),
    )
    def comes(self, peer: str, ahead: int, phase: int, role: Role) -> None:
        key = Key(max(0, self.round + ahead), phase, role)
        what = self.box.offer(peer, key, SHAPE)
        if what is Admission.ADMIT:
            assert key in self.open
            assert peer in "ab"
            assert (peer, key) not in self.inside | self.whole
            self.inside.add((peer, key))
        elif what is Admission.PARK:
            assert key not in self.open
            assert key.round in (self.round, self.round + 1)
            assert (peer, key) not in self.parked
            self.parked.append((peer, key))
        elif key in self.open and peer in "ab" and (peer, key) not in self.parked:
            assert (peer, key) in self.inside | self.whole

    @rule()
    def the_parked_try_again(self) -> None:
        waiting, self.parked = self.parked, []
        for peer, key in waiting:
            what = self.box.offer(peer, key, SHAPE, parked=True)
            if what is Admission.ADMIT:
                assert key in self.open
                self.inside.add((peer, key))
            elif what is Admission.PARK:
                self.parked.append((peer, key))

    @rule(data=st.data(), breaks=st.booleans())
    def ends(self, data: st.DataObject, breaks: bool) -> None:
        if self.inside:
            this = data.draw(st.sampled_from(sorted(self.inside)))
            self.inside.discard(this)
            if breaks:
                self.box.broken(*this)
            else:
                self.box.delivered(*this)
                self.whole.add(this)

    @invariant()
    def few_are_parked(self) -> None:
        assert all(
            sum(1 for other, _ in self.parked if other == peer) <= PARKED_PER_PEER for peer in "abc"
        )


TestMailboxMachine = MailboxMachine.TestCase
TestMailboxMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
