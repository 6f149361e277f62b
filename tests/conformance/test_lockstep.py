"""The plain driver: what is heard for what is said, and what is lost."""

import gc
from functools import partial

import pytest
import torch

from node.rounds import lockstep
from node.rounds.lockstep import exchange
from peer.message import Ask, IncrementalPayload, Layout, Mix, Say, Withheld, say
from peer.topology import make_neighborhoods

THREE = make_neighborhoods("full", ["a", "b", "c"])
X = {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([3.0, 0.0]), "c": torch.tensor([6.0, 6.0])}


def ask(me, *, withheld=(), served=None):
    """Answers with (question + 1), except to `withheld`; notes whom it served."""

    def answer(peer, question):
        if served is not None:
            served.append((me, peer))
        if peer in withheld:
            raise Withheld
        return question + 1

    return Ask("q", X[me], answer=answer)


def test_say_is_heard_by_every_neighbor_in_sorted_order():
    heard = exchange({i: Say("s", X[i]) for i in sorted(X, reverse=True)}, THREE)
    assert list(heard["b"]) == ["a", "c"]
    assert torch.equal(heard["b"]["c"], X["c"])
    assert heard["b"].missing == frozenset()


def test_what_is_heard_is_a_copy():
    heard = exchange({i: Say("s", X[i]) for i in X}, THREE)
    heard["b"]["a"].fill_(99)
    assert torch.equal(heard["c"]["a"], torch.tensor([0.0, 3.0]))
    assert torch.equal(X["a"], torch.tensor([0.0, 3.0]))


def test_of_what_is_said_there_is_a_copy_for_each_sender_not_for_each_edge():
    names, most = [f"n{k}" for k in range(6)], []

    class Talker:
        def __init__(self, k):
            self.x = torch.full((4321,), float(k))

        def round(self, t, view):
            heard = yield from say("s", self.x)
            gc.collect()
            most.append(sum(torch.is_tensor(it) and it.numel() == 4321 for it in gc.get_objects()))
            self.x = torch.stack([*heard.values()]).sum(0)

    talkers = {name: Talker(k) for k, name in enumerate(names)}
    lockstep.run(talkers, make_neighborhoods("full", names), 1)
    assert max(most) <= 4 * 6 < 6 * 5, "own, copies, one receiver's, and results"
    assert talkers["n0"].x[0] == 1 + 2 + 3 + 4 + 5


def test_a_question_is_a_copy_and_an_answer_may_be_stored():
    """A gate that gives the stored release again is not changed by who received it."""
    stored = torch.ones(2)

    def answer(peer, question):
        question.fill_(99)
        return stored

    heard = exchange({i: Ask("q", X[i], answer=answer) for i in X}, THREE)
    heard["a"]["b"].fill_(7)
    assert torch.equal(stored, torch.ones(2))
    assert torch.equal(X["a"], torch.tensor([0.0, 3.0]))


def test_ask_brings_the_answers_to_my_question():
    heard = exchange({i: ask(i) for i in X}, THREE)
    assert torch.equal(heard["a"]["c"], X["a"] + 1)
    assert torch.equal(heard["c"]["a"], X["c"] + 1)


def test_what_is_lost_is_missing_at_the_receiver_only():
    for verbs in ({i: Say("s", X[i]) for i in X}, {i: ask(i) for i in X}):
        heard = exchange(verbs, THREE, lost={("a", "b")})
        assert (list(heard["b"]), heard["b"].missing) == (["c"], {"a"})
        assert (list(heard["a"]), heard["a"].missing) == (["b", "c"], frozenset())


def test_a_lost_answer_was_released_in_vain():
    served: list[tuple[str, str]] = []
    exchange({i: ask(i, served=served) for i in X}, THREE, lost={("a", "b")})
    assert ("a", "b") in served


def test_a_withheld_answer_is_missing():
    heard = exchange({i: ask(i, withheld="b") for i in X}, THREE)
    assert heard["b"].missing == {"a", "c"}
    assert heard["a"].missing == frozenset()


def test_mix_is_the_weighted_average():
    heard = exchange({i: Mix("m", X[i]) for i in X}, THREE)
    for i in X:
        torch.testing.assert_close(heard[i], torch.tensor([3.0, 3.0]))


def test_mix_keeps_the_weight_of_a_lost_edge_at_both_its_ends():
    """b did not hear a in the phase before."""
    before = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset("ab")}
    heard = exchange({i: Mix("m", X[i]) for i in X}, THREE, heard=before)
    torch.testing.assert_close(heard["a"], (2 * X["a"] + X["c"]) / 3)
    torch.testing.assert_close(heard["b"], (2 * X["b"] + X["c"]) / 3)
    torch.testing.assert_close(heard["c"], torch.tensor([3.0, 3.0]))


def test_a_node_that_is_down_is_missing_everywhere():
    up = ("a", "c")
    heard = exchange({i: Say("s", X[i]) for i in up}, THREE)
    assert heard.keys() == set(up)
    assert heard["a"].missing == {"b"}
    mixed = exchange({i: Mix("m", X[i]) for i in up}, THREE)
    torch.testing.assert_close(mixed["a"], (2 * X["a"] + X["c"]) / 3)


def filling(x):
    into = torch.empty_like(x)

    def steps():
        for k in range(len(x)):
            into[k] = x[k]
            yield 1

    return IncrementalPayload(into, steps())


@pytest.mark.parametrize("verb", [Say, Mix])
def test_tuples_and_vectors_still_being_filled(verb):
    """A tuple comes back as a tuple; streaming or not, filled or still being filled: the same
    bits.
    """
    pair = exchange({i: verb("s", (X[i], 2 * X[i])) for i in X}, THREE)
    lazy = exchange({i: verb("s", filling(X[i])) for i in X}, THREE)
    plain = exchange({i: verb("s", X[i]) for i in X}, THREE)
    if verb is Mix:
        streamed = exchange({i: Mix("s", filling(X[i]), streaming=True) for i in X}, THREE)
        assert all(torch.equal(lazy[i], plain[i]) and torch.equal(streamed[i], plain[i]) for i in X)
        torch.testing.assert_close(pair["a"][1], 2 * plain["a"])
    else:
        assert torch.equal(lazy["a"]["b"], X["b"])
        assert torch.equal(pair["a"]["b"][1], 2 * X["b"])


@pytest.mark.parametrize(
    "other",
    [
        Say("m", X["c"]),
        Mix("n", X["c"]),
        Mix("m", X["c"], layout=Layout((("w", (2,)),))),
        Mix("m", X["c"], streaming=True),
    ],
    ids=["type", "kind", "layout", "streaming"],
)
def test_nodes_that_say_different_things_in_one_phase_are_a_bug(other):
    with pytest.raises(AssertionError, match="disagree"):
        exchange({"a": Mix("m", X["a"]), "b": Mix("m", X["b"]), "c": other}, THREE)


class Talker:
    """Says so many things, and notes what it heard; then mixes if asked to."""

    def __init__(self, x, says, mixes=0):
        self.x, self.says, self.mixes, self.missing = x, says, mixes, []

    def round(self, t, view):
        for k in range(self.says):
            heard = yield Say(f"s{k}", self.x)
            self.missing.append((t, k, heard.missing))
        for _ in range(self.mixes):
            self.x = yield Mix("m", self.x)


def test_a_node_that_leaves_the_round_early_is_a_bug():
    talkers = {i: Talker(X[i], says=1 if i == "b" else 2) for i in X}
    with pytest.raises(AssertionError, match=r"round 0, phase 1: only \['a', 'c'\] still speak"):
        lockstep.run(talkers, THREE, 1)


def test_lossy_is_asked_per_round_phase_sender_and_receiver():
    talkers = {i: Talker(X[i], says=2) for i in X}
    lockstep.run(talkers, THREE, 3, first=1, lossy=lambda *what: what == (2, 1, "a", "b"))
    nothing: frozenset[str] = frozenset()
    assert talkers["b"].missing == [
        (1, 0, nothing),
        (1, 1, nothing),
        (2, 0, nothing),
        (2, 1, {"a"}),
    ]
    assert all(missing == nothing for i in "ac" for _, _, missing in talkers[i].missing)


def test_a_mix_agrees_on_who_was_heard_in_the_phase_just_before():
    """Lost in phase 0 and heard again in phase 1: the edge is mixed. Lost in phase 1: it is not, at
    either end.
    """

    def in_phase(phase):
        return lambda t, *edge: edge == (phase, "b", "a")

    for phase, expected in ((0, torch.tensor([3.0, 3.0])), (1, (2 * X["a"] + X["c"]) / 3)):
        talkers = {i: Talker(X[i], says=2, mixes=1) for i in X}
        lockstep.run(talkers, THREE, 1, lossy=in_phase(phase))
        torch.testing.assert_close(talkers["a"].x, expected)


def test_after_round_hears_every_round_once():
    seen: list[int] = []
    lockstep.run({i: Talker(X[i], says=1) for i in X}, THREE, 5, first=2, after_round=seen.append)
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_the_wire_would_refuse_is_not_heard(value):
    """NaN, infinity, and what has no finite norm: said by b it reaches nobody, answered by b to a
    not a.
    """
    broken = torch.tensor([value, 0.0])
    said = {i: Say("s", broken if i == "b" else X[i]) for i in X}
    assert exchange(said, THREE)["a"].missing == {"b"}
    mixed = exchange({i: Mix("m", broken if i == "b" else X[i]) for i in X}, THREE)
    assert torch.allclose(mixed["a"], (2 * X["a"] + X["c"]) / 3)

    def answer(i, peer, question):
        return broken if (i, peer) == ("b", "a") else question

    asked = {i: Ask("q", X[i], answer=partial(answer, i)) for i in X}
    assert [exchange(asked, THREE)[i].missing for i in X] == [{"b"}, frozenset(), frozenset()]


def test_an_answer_that_is_not_finite_costs_the_edge_in_the_mix_after_it():
    """As over the wire, at both ends; a question that is not finite costs nothing."""

    class Asker:
        def __init__(self, me, question, answer):
            self.me, self.question, self.answer = me, question, answer
            self.state = torch.empty(0)

        def round(self, t, view):
            yield Ask("q", self.question, answer=lambda peer, question: self.answer)
            self.state = yield Mix("m", X[self.me])

    odd = torch.full((2,), float("nan"))
    for b, kept in (((odd, X["b"]), True), ((X["b"], odd), False)):
        nodes = {i: Asker(i, *(b if i == "b" else (X[i], X[i]))) for i in X}
        lockstep.run(nodes, THREE, 1)
        alone = [(X["a"] + X["b"] + X["c"]) / 3, (2 * X["a"] + X["c"]) / 3][not kept]
        assert torch.allclose(nodes["a"].state, alone)
        assert torch.allclose(nodes["b"].state, alone if kept else X["b"])
