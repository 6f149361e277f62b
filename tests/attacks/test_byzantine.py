"""The seam of message attacks: what an attacker says, what it hears, and that nothing else changes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit.mesh import mesh, play
from kit.toys import LAYOUT, VARIANTS, D, Listened, Stingy, cluster, lossy, results
from node.algorithms import Algorithm, Resources
from node.attacks import ATTACKS, Attack
from node.attacks.byzantine import ByzantineAlgorithm, MessageAttack, MessageAttackConfig
from node.config import AttackSection, MixSection
from node.rounds import lockstep
from node.rounds.lockstep import exchange
from peer.message import Ask, IncrementalPayload, Mix, Say
from peer.neighborhood import View
from peer.topology import make_neighborhoods

XAVG: tuple[str, dict[str, Any]] = ("xavg", {})
DMSGD: tuple[str, dict[str, Any]] = ("dmsgd", {})
DPSGD: tuple[str, dict[str, Any]] = ("d-psgd", {})
OTHERS = ("label-flip", "feature-noise", "reward-hack", "free-rider")
MESSAGE_ATTACKS = [name for name in sorted(ATTACKS) if name not in OTHERS]
every = pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda v: f"{v[0]} {v[1]}" if v[1] else v[0]
)
message_attacks = pytest.mark.parametrize("name", MESSAGE_ATTACKS)


def attacked(variant, name, kind="full", n=4, who=("n1",), gate=None, **options):
    """(nodes, neighborhoods), some of them liars."""
    nodes, neighborhoods = cluster(variant, kind, n, **({"gate": gate} if gate else {}))
    attack = Attack.of(AttackSection(name=name, **options))
    return {
        i: attack.on_algorithm(a, 1) if i in who else a for i, a in nodes.items()
    }, neighborhoods


def view(me):
    """Who is around in a full graph of four."""
    return View(make_neighborhoods("full", [f"n{i}" for i in range(4)])[me])


class Spy(MessageAttack):
    """Says the truth plus `more`, and keeps what it was told."""

    Config = MessageAttackConfig
    listens = True

    def __init__(self, more=0.0, **options):
        super().__init__(MessageAttackConfig(**options))
        self.more, self.seen = more, []

    def lie(self, said):
        self.seen.append(said)
        return said.truth + self.more


def spied(variant, spy, kind="full", n=4):
    """(nodes with the spy as n1 and everybody's messages noted, neighborhoods)."""
    nodes, neighborhoods = cluster(variant, kind, n)
    heard: dict[str, Any] = {i: Listened(a) for i, a in nodes.items()}
    return (
        heard | {"n1": ByzantineAlgorithm(heard["n1"], spy, 1)},
        heard,
        neighborhoods,
    )


@every
@message_attacks
def test_strength_zero_has_the_bits_of_honesty(variant, name):
    """With the same neighbors lost, too."""
    everything = {} if name == "state" else {"words": ("answer", "question", "state")}
    honest, neighborhoods = cluster(variant)
    liars, _ = attacked(variant, name, strength=0.0, **everything)
    for nodes in (honest, liars):
        lockstep.run(nodes, neighborhoods, 5, lossy=lossy(1))
    assert torch.equal(results(honest), results(liars))


def test_at_strength_zero_it_does_not_matter_what_the_lie_would_be():
    """Not even where it is beyond all numbers, or the truth is −0."""
    for truth in (torch.tensor([1.0, -0.0]), torch.tensor([3e38, 0.0])):
        talker = Talker("n1", truth)
        setattr(talker, "round", lambda t, view, truth=truth: (yield Mix("m", truth)))  # noqa: B010
        spy = Spy(more=float("inf"), strength=0.0)
        said: Any = next(ByzantineAlgorithm(talker, spy, 1).round(0, view("n1"))).tensors
        assert said.numpy().tobytes() == truth.numpy().tobytes()


@message_attacks
def test_at_full_strength_it_is_seen_in_the_neighbors(name):
    """Power check of the test above."""
    honest, neighborhoods = cluster(XAVG)
    liars, _ = attacked(XAVG, name)
    for nodes in (honest, liars):
        lockstep.run(nodes, neighborhoods, 5)
    assert not torch.equal(honest["n0"].parameters, liars["n0"].parameters)


@every
def test_the_sequence_of_verbs_is_the_honest_one(variant):
    liars, neighborhoods = attacked(variant, "sign-flip")
    heard = {i: Listened(a) for i, a in liars.items()}
    lockstep.run(heard, neighborhoods, 4)
    assert heard["n1"].verbs == heard["n0"].verbs


def test_the_state_and_all_else_are_the_honest_algorithms():
    nodes, _ = cluster(XAVG)
    honest = nodes["n1"]
    liar = attacked(XAVG, "zero")[0]["n1"]
    assert type(liar.state) is type(honest.state)
    liar.state = honest.state
    assert torch.equal(liar.parameters, honest.parameters)
    assert liar.diagnostics() == {}


def test_answers_and_states_are_lies_questions_are_not():
    """One round by hand: sign flips, of the parameters' step."""
    honest, neighborhoods = cluster(XAVG)
    liars, _ = attacked(XAVG, "sign-flip", who=tuple(honest))
    asked = {}
    for nodes in (honest, liars):
        talks = {i: a.round(0, view(i)) for i, a in nodes.items()}
        verbs: dict[str, Any] = {i: next(talk) for i, talk in talks.items()}
        assert all(type(verb) is Ask for verb in verbs.values())
        assert all(torch.equal(verbs[i].tensors, nodes[i].parameters) for i in verbs)
        heard = exchange(verbs, neighborhoods)
        states = {i: talks[i].send(dict(heard[i])) for i in talks}
        asked[nodes is liars] = heard, states
    (true, _), (false, states) = asked[False], asked[True]
    for i in honest:
        assert all(torch.equal(false[i][j], -g) for j, g in true[i].items())
        truth, x = liars[i], honest[i].parameters
        said_x, said_v = states[i].tensors
        g = sum(neighborhoods[i].weight[j] * -true[i][j] for j in true[i]) + neighborhoods[
            i
        ].weight[i] * honest[i].gradients(x, 0, i)
        v = g + truth.config.weight_decay * x
        torch.testing.assert_close(said_v, -v, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(said_x, x + truth.config.lr * v, rtol=1e-5, atol=1e-6)


def test_a_value_can_be_lied_about_instead_of_a_step():
    liars, _ = attacked(DMSGD, "sign-flip", of="value")
    honest, _ = cluster(DMSGD)
    lie, truth = next(liars["n1"].round(0, view("n1"))), next(honest["n1"].round(0, view("n1")))
    assert all(torch.equal(a, -b) for a, b in zip(lie.tensors, truth.tensors, strict=True))


def test_questions_are_lies_where_that_is_asked_for():
    liars, _ = attacked(XAVG, "sign-flip", words=("question",))
    assert torch.equal(next(liars["n1"].round(0, view("n1"))).tensors, -liars["n1"].parameters)


def test_strength_goes_from_the_truth_to_the_lie_and_beyond():
    truth = next(cluster(DMSGD)[0]["n1"].round(0, view("n1"))).tensors[1]
    for strength, factor in ((0.25, 0.5), (1.0, -1.0), (2.0, -3.0)):
        said = next(
            attacked(DMSGD, "sign-flip", strength=strength)[0]["n1"].round(0, view("n1"))
        ).tensors[1]
        torch.testing.assert_close(said, factor * truth)


@pytest.mark.parametrize(
    "mix", [MixSection(), MixSection(rule="median"), MixSection(rule="clipping")]
)
@pytest.mark.parametrize("variant", [XAVG, DMSGD, DPSGD], ids=lambda v: v[0])
def test_in_its_own_mixing_an_attacker_believes_itself(variant, mix):
    """One round of lies in the state: its own model is that of an honest run, its neighbors' are
    not.
    """
    honest, neighborhoods = cluster(variant)
    liars, _ = attacked(variant, "state", lie="scaling", of="value")
    for nodes in (honest, liars):
        lockstep.run(nodes, neighborhoods, 1, mix=mix)
    assert torch.equal(liars["n1"].parameters, honest["n1"].parameters)
    assert not torch.equal(liars["n0"].parameters, honest["n0"].parameters)


def test_state_only_leaves_answers_alone():
    nodes, neighborhoods = attacked(XAVG, "state", lie="zero")
    honest, _ = cluster(XAVG)
    heard = [
        exchange({i: next(a.round(0, view(i))) for i, a in run.items()}, neighborhoods)["n0"]["n1"]
        for run in (nodes, honest)
    ]
    assert torch.equal(*heard)


def test_what_was_mixed_the_round_before_is_known_as_steps():
    """x counted from what the last mixing gave in that round, v as it is; of every neighbor, in
    sorted order.
    """
    spy = Spy()
    nodes, heard, neighborhoods = spied(DMSGD, spy)
    before = {}
    for t in range(3):
        before[t] = nodes["n1"].parameters
        lockstep.run(nodes, neighborhoods, t + 1, first=t)
    for t, (x, v) in enumerate(zip(spy.seen[::2], spy.seen[1::2], strict=True)):
        assert (x.kind, x.parameters, v.parameters, list(x.heard)) == (
            "state",
            True,
            False,
            ["n0", "n2", "n3"] * (t > 0),
        )
        for j in x.heard:
            said_x, said_v = heard[j].said[2 * (t - 1) : 2 * t]
            assert torch.equal(x.heard[j], said_x - before[t - 1])
            assert torch.equal(v.heard[j], said_v)


def test_the_step_of_an_algorithm_that_mixes_first_is_that_of_the_round_before():
    """D-PSGD says the x that its last step led to: counted from what the last mixing gave, it is −η
    g.
    """
    spy = Spy()
    nodes, _, neighborhoods = spied(DPSGD, spy)
    lockstep.run(nodes, neighborhoods, 3)
    lr = nodes["n1"].config.lr
    assert not spy.seen[0].truth.any(), "before its first step there is none"
    for t in (1, 2):
        x = spy.seen[t].truth
        assert 0 < x.norm() < 10 * lr


@pytest.mark.parametrize("wire", ["float32", "bf16-delta"])
def test_the_step_of_a_block_is_counted_from_that_block(wire):
    """Not from the one before it, of which nothing is remembered; a change is a step already."""
    spy, steps = Spy(), 2
    nodes, heard, neighborhoods = spied(
        ("deca", {"lr": 0.01, "steps": steps, "layers_per_block": 1, "wire": wire}), spy
    )
    for t in range(3 * steps):
        before = nodes["n1"].parameters[nodes["n1"].span(t)].clone()
        lockstep.run(nodes, neighborhoods, t + 1, first=t)
        said = heard["n1"].said[t]
        assert torch.equal(spy.seen[t].truth, said - before if wire == "float32" else said)
        assert list(spy.seen[t].heard) == ["n0", "n2", "n3"] * (t % steps)


def test_answers_heard_are_those_of_the_round_before_whoever_asks_first():
    """Else it would depend on the network what an attacker says."""
    spy = Spy(words=("answer", "question"))
    nodes, _, neighborhoods = spied(XAVG, spy)
    lockstep.run(nodes, neighborhoods, 3)
    answers = [said for said in spy.seen if said.kind == "answer"]
    questions = [said for said in spy.seen if said.kind == "question"]
    assert [list(said.heard) for said in answers] == [[]] * 3 + [["n0", "n2", "n3"]] * 6
    assert all(torch.equal(answers[3].heard["n0"], said.heard["n0"]) for said in answers[4:6])
    assert [list(said.heard) for said in questions] == [[], ["n0", "n2", "n3"], ["n0", "n2", "n3"]]
    assert torch.equal(questions[1].heard["n2"], answers[1].question), "what they asked"


class Talker(Algorithm):
    """Says a pair, then mixes slices one after another."""

    def __init__(self, me, x):
        nothing: Any = None
        super().__init__(None, Resources(me=me, layout=LAYOUT, start=x, gradients=nothing))
        self.state = SimpleNamespace(x=x)

    def round(self, t, view):
        x = self.state.x
        self.heard = yield Say("pair", (x, 2 * x))
        slices = IncrementalPayload(x, iter([3, D - 3]))
        self.state = SimpleNamespace(x=(yield Mix("slices", slices, streaming=True)))


def test_says_pairs_and_slices_are_lied_about_in_their_own_form():
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    nodes = {i: Talker(i, torch.full((D,), float(k))) for k, i in enumerate(neighborhoods)}
    spy = Spy(more=100.0)
    lockstep.run({**nodes, "n1": ByzantineAlgorithm(nodes["n1"], spy, 1)}, neighborhoods, 1)
    assert torch.equal(nodes["n0"].heard["n1"][1], torch.full((D,), 102.0))
    torch.testing.assert_close(nodes["n0"].parameters, torch.full((D,), 1 + 100 / 3))
    torch.testing.assert_close(nodes["n1"].parameters, torch.full((D,), 1.0))


async def test_a_liar_that_collects_among_neighbors_that_stream():
    """It needs whole messages to stay with the truth itself; on the wire nobody sees the
    difference.
    """
    neighborhoods = make_neighborhoods("full", ["n0", "n1", "n2"])
    found = []
    for driver in ("simulate", "mesh"):
        nodes = {i: Talker(i, torch.full((D,), float(k))) for k, i in enumerate(neighborhoods)}
        talking = {**nodes, "n1": ByzantineAlgorithm(nodes["n1"], Spy(more=100.0), 1)}
        if driver == "simulate":
            lockstep.run(talking, neighborhoods, 3)
        else:
            await play(mesh(talking, neighborhoods, 3))
        found.append(torch.stack([node.parameters for node in nodes.values()]))
    assert torch.equal(*found)


def test_what_is_withheld_stays_withheld():
    liars, neighborhoods = attacked(XAVG, "zero", gate=Stingy)
    heard = exchange({i: next(a.round(0, view(i))) for i, a in liars.items()}, neighborhoods)
    assert all(them.missing == set(neighborhoods[i].neighbors) for i, them in heard.items())


def test_gaussian_draws_anew_for_every_vector_and_repeats_by_seed():
    runs = []
    for _ in range(2):
        liars, neighborhoods = attacked(XAVG, "gaussian")
        talk = liars["n1"].round(0, view("n1"))
        verb = next(talk)
        runs.append([verb.answer(j, liars[j].parameters) for j in neighborhoods["n1"].neighbors])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(*runs[0][:2])
