"""FGRPO (a reconstruction of arXiv 2606.03094): weights, audits, commitments and the pull, with a
tabular policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kit.bandits import LAYOUT, cluster, success
from node.algorithms import Resources
from node.algorithms.fgrpo import Fgrpo, Update, commitment_of, goes_on, pulls
from node.algorithms.grpo import Grpo
from node.attacks import Attack
from node.config import AttackSection
from node.maths.audit import AuditConfig, Evidence, largest_norm, shortened
from node.maths.commitment import Commitment, update_digest
from node.maths.relative_gain import GainConfig
from node.rounds import lockstep
from peer.errors import ConfigurationError
from peer.message import step
from peer.neighborhood import View

ROUNDS = 40


def played(algorithm=Fgrpo, rounds=ROUNDS, graph="full", attacker=None, **options):
    nodes, neighborhoods = cluster(algorithm, graph, **options)
    if attacker:
        nodes["n5"] = attacker(nodes["n5"])
    lockstep.run(nodes, neighborhoods, rounds)
    return nodes


def mean_success(nodes, without=()):
    honest = [node for name, node in nodes.items() if name not in without]
    return sum(success(node.parameters) for node in honest) / len(honest)


def lying(name, **options):
    return AttackSection.model_validate({"name": name, "words": ["state"], **options})


def liar(factor=3.0, claim=1e3):
    """A peer that sends −factor · δ, and claims a reward."""
    section = lying("sign-flip", factor=factor, claim=claim)
    return lambda node: Attack.of(section).on_algorithm(node, 0)


def test_peers_with_different_questions_learn_one_policy_for_all():
    together, alone = played(), played(Grpo)
    assert mean_success(together) > 0.95
    assert mean_success(alone) < 0.5


def test_each_alone_says_nothing():
    nodes, neighborhoods = cluster(Grpo)
    assert step(nodes["n0"].round(0, View(neighborhoods["n0"]))) is None


@pytest.mark.parametrize("weights", ["uniform", "size", "reward", "raw-gain", "gain"])
def test_baselines_learn_too(weights):
    assert mean_success(played(weights=weights, gain="reported")) > 0.8


def test_equal_gains_weigh_alike():
    nodes = played(rounds=1, gain="reported")
    assert list(nodes["n0"].diagnostics()["weight"].values()) == pytest.approx([1 / 6] * 5)


def test_a_liar_is_convicted_and_costs_next_to_nothing():
    """It sends −3δ and claims a huge reward: who believes it learns little, who audits goes on."""
    believing = played(attacker=liar(), gain="reported", norm_bound=None)
    uniform = played(attacker=liar(), weights="uniform", norm_bound=None)
    audited, honest = played(attacker=liar()), played()
    assert mean_success(audited, ["n5"]) >= 0.9 * mean_success(honest)
    for lost in (believing, uniform):
        assert mean_success(lost, ["n5"]) < mean_success(audited, ["n5"]) - 0.1


def verdicts(rounds=ROUNDS, attacker=None, **options):
    """Round -> (receiver, peer) -> convicted, of honest receivers."""
    nodes, neighborhoods = cluster(Fgrpo, **options)
    if attacker:
        nodes["n5"] = attacker(nodes["n5"])
    seen = []
    lockstep.run(
        nodes,
        neighborhoods,
        rounds,
        after_round=lambda t: seen.append(
            {
                (name, peer): verdict
                for name, node in nodes.items()
                if name != "n5" or not attacker
                for peer, verdict in node.diagnostics()["convicted"].items()
            }
        ),
    )
    return seen


@pytest.mark.parametrize("factor", [3.0, 0.5], ids=["gross", "subtle"])
def test_a_liar_is_convicted_by_everybody_within_six_rounds(factor):
    seen = verdicts(rounds=6, attacker=liar(factor, claim=1.0))
    for receiver, peer in seen[-1]:
        convicted = any(each[receiver, peer] for each in seen)
        assert convicted == (peer == "n5"), (receiver, peer)


def test_power_of_the_verdict():
    """With a bound that convicts nobody the liar of the test above does harm."""
    nobody = played(attacker=liar(), audit=AuditConfig(convict=1e9), norm_bound=None)
    assert mean_success(nobody, ["n5"]) < mean_success(played(attacker=liar()), ["n5"]) - 0.1


def test_nobody_honest_is_convicted():
    seen = [verdict for each in verdicts() for verdict in each.values()]
    assert len(seen) == 6 * 5 * ROUNDS
    assert sum(seen) <= 0.01 * len(seen)


def test_in_a_ring_the_pull_keeps_models_together():
    def spread(nodes):
        return float(torch.stack([node.parameters for node in nodes.values()]).std(0).norm())

    with_pull, without = (played(graph="ring", pull=kappa) for kappa in (0.5, 0.0))
    assert spread(with_pull) < 0.6 * spread(without)
    assert mean_success(with_pull) > mean_success(without)


def test_auditors_weigh_differently_and_drift_apart_without_a_pull():
    assert mean_success(played(pull=0.0)) < mean_success(played()) - 0.1


@pytest.mark.parametrize("honest", [1, 2, 3])
def test_the_pull_takes_no_difference_much_longer_than_the_others(honest):
    """Nor than the own update: also where there is one neighbor, or two."""
    before, own = torch.zeros(4), torch.full((4,), 0.5)
    models = {f"n{k}": torch.ones(4) for k in range(honest)} | {"liar": torch.full((4,), 1e6)}
    updates = {j: Update(FIRST, (torch.zeros(4), x)) for j, x in models.items()}
    pulled = pulls(dict.fromkeys(updates, 0.25), before, own, updates)
    assert float(pulled["liar"].norm()) <= 0.25 * 2
    assert torch.equal(pulled["n0"], torch.full((4,), 0.25))
    lone = pulls({"liar": 0.5}, before, own, {"liar": updates["liar"]})
    assert float(lone["liar"].norm()) <= 0.5 * 1


def test_groups_that_all_earn_alike_change_nothing():
    nodes, neighborhoods = cluster(Fgrpo)
    for node in nodes.values():
        node.policy.rewarded = False
    lockstep.run(nodes, neighborhoods, 2)
    for node in nodes.values():
        assert not node.parameters.any()
        assert node.state.step == 0
        assert node.diagnostics()["frac_reward_zero_std"] == 1


@pytest.mark.parametrize("bound", [None, 1e-3])
def test_the_norm_of_the_gradient_is_told_as_it_was_before_it_was_clipped(monkeypatch, bound):
    """Clipped, it would always be the bound; the step writes over it."""
    nodes, neighborhoods = cluster(Fgrpo, clip_norm=bound)
    policy, norms = nodes["n0"].policy, []
    gradient = policy.gradient

    def watched(*given, **options):
        update = gradient(*given, **options)
        norms.append(float(update.gradient.norm()))
        return update

    monkeypatch.setattr(policy, "gradient", watched)
    lockstep.run(nodes, neighborhoods, 1)
    assert nodes["n0"].diagnostics()["grad_norm"] == pytest.approx(sum(norms) / 2)
    assert min(norms) > 0.01


def test_an_update_that_hurts_as_a_whole_is_taken_back():
    """Nobody is convicted, but what all of it together does to the own questions is seen."""
    nodes, neighborhoods = cluster(Fgrpo, nodes=3, norm_bound=None)
    node = nodes["n0"]
    talk = node.round(0, View(neighborhoods["n0"]))
    verb: Any = step(talk)
    own = verb.tensors[0]
    theta = -20 * own
    x, rolled_back = node.checked(node.state.x, slice(None), theta, own)
    assert rolled_back
    assert torch.equal(x, node.state.x + own)
    x, rolled_back = node.checked(node.state.x, slice(None), 2 * own, own)
    assert (rolled_back, torch.equal(x, 2 * own)) == (False, True)


def test_only_so_many_are_audited_in_a_round():
    few, all_of_them = (
        played(rounds=6, audit=AuditConfig(neighbors_per_round=most)) for most in (2, None)
    )
    per_peer = 4 * AuditConfig().questions
    assert few["n0"].diagnostics()["audit_tokens"] == 3 * per_peer
    assert all_of_them["n0"].diagnostics()["audit_tokens"] == 6 * per_peer
    assert set(few["n0"].state.evidence) <= set(all_of_them["n0"].state.evidence)


def test_optimizer_state_and_verdicts_are_in_the_checkpoint():
    """A run in two halves, the second from the state of the first, is the run in one."""
    straight, _ = played(rounds=8), None
    nodes, neighborhoods = cluster(Fgrpo)
    lockstep.run(nodes, neighborhoods, 4)
    again, _ = cluster(Fgrpo)
    for name, node in again.items():
        node.state = nodes[name].state
    lockstep.run(again, neighborhoods, 8, first=4)
    for name, node in again.items():
        assert torch.equal(node.parameters, straight[name].parameters)


def test_a_liar_lies_from_a_round_on_and_its_chain_holds():
    section = lying("zero", since=3)
    nodes, neighborhoods = cluster(Fgrpo)
    nodes["n5"] = Attack.of(section).on_algorithm(nodes["n5"], 0)
    norms = []

    def after_round(t):
        norms.append(sum(nodes["n0"].state.norms[-1:]))
        assert nodes["n0"].diagnostics()["convicted"]["n5"] == 0
        assert set(nodes["n0"].state.heard["n5"]) == set(map(str, range(t + 1)))

    lockstep.run(nodes, neighborhoods, 6, after_round=after_round)
    assert nodes["n0"].state.baselines["n5"][0] == 6
    assert len(norms) == 6


def test_who_is_paid_for_the_wrong_thing_learns_nothing_here():
    """All answers are equally long."""
    nodes, neighborhoods = cluster(Fgrpo)
    given = Attack.of(AttackSection(name="reward-hack"))
    resources = given.on_resources(
        Resources(
            me="n5",
            layout=LAYOUT,
            start=torch.zeros(LAYOUT.size),
            gradients=nodes["n5"].gradients,
            policy=nodes["n5"].policy,
        )
    )
    nodes["n5"] = Fgrpo(nodes["n5"].config, resources)
    lockstep.run(nodes, neighborhoods, 1)
    assert nodes["n5"].diagnostics()["frac_reward_zero_std"] == 1
    assert nodes["n5"].state.step == 0


# commitments

DELTA = torch.arange(4.0)
FIRST = Commitment(
    round=0, update=update_digest(DELTA), reward=0.5, evaluation="e", families=("f0",)
)
CHAIN = {"0": FIRST.digest}
SECOND = replace(FIRST, round=1, previous_round=0, previous=FIRST.digest)


def test_a_commitment_is_what_it_was_on_the_other_side():
    assert commitment_of(FIRST.encode(), 0, DELTA) == FIRST
    assert commitment_of(SECOND.encode(), 1, DELTA) == SECOND


@pytest.mark.parametrize(
    ("commitment", "t", "delta", "why"),
    [
        (FIRST, 1, DELTA, "a replayed one"),
        (SECOND, 1, DELTA + 1, "of another update"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_commitment_that_does_not_hold_counts_for_nothing(commitment, t, delta, why):
    assert commitment_of(commitment.encode(), t, delta) is None


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 4000,
        FIRST.encode().replace(b"0.5", b"NaN"),
        FIRST.encode().replace(b"0.5", b"1e999"),
        FIRST.encode().replace(b"0.5", b"1" + b"0" * 400),
        FIRST.encode().replace(b"0.5", b"true"),
        FIRST.encode().replace(b'"questions": 0', b'"questions": -1'),
        FIRST.encode().replace(b'["f0"]', b'"f0"'),
        FIRST.encode().replace(b'["f0"]', b"[1]"),
        FIRST.encode().replace(b'"round": 0', b'"round": -7'),
        FIRST.encode().replace(b'"round": 0', b'"round": true'),
        FIRST.encode().replace(b'"evaluation": "e"', b'"evaluation": null'),
        FIRST.encode() + b" " * 5000,
    ],
    ids=range(16),
)
def test_whatever_stands_in_a_note_is_a_commitment_or_nothing(note):
    assert commitment_of(note, 0, DELTA) is None


@pytest.mark.parametrize("previous_round", [1, 2, 2**52])
def test_nothing_follows_what_is_yet_to_come(previous_round):
    note = replace(SECOND, round=1, previous_round=previous_round, previous="0" * 64).encode()
    assert commitment_of(note, 1, DELTA) is None


def test_names_of_families_fit_into_a_note():
    Fgrpo.Config().check_families(["own:a.b"] * 14, [])
    with pytest.raises(ConfigurationError, match="too long to travel with every update"):
        Fgrpo.Config().check_families([f"own:{'ж' * 60}.{k}" for k in range(14)], [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"relative": {"clip": 2.0, "temperature": 0.002}}, "clip = 2 is more than 300 times"),
        ({"audit": {"acquit": -5.0}}, "would be let go at once"),
        ({"audit": {"acquit": float("nan")}}, "finite"),
        ({"audit": {"convict": float("inf")}}, "finite"),
        ({"temperature": 1e-40}, "greater than or equal to 0.01"),
        ({"lr": float("inf")}, "finite"),
        ({"eta": float("inf")}, "finite"),
        ({"beta": float("inf")}, "finite"),
        ({"beta": 1e38}, "less than or equal to 1000000"),
        ({"norm_bound": float("inf")}, "finite"),
        ({"clip_norm": float("inf")}, "finite"),
        ({"warmup": {"lr": float("inf")}}, "finite"),
        ({"relative": {"temperature": float("inf")}}, "finite"),
        ({"epsilon": 1e300}, "less than or equal to 1000000"),
        ({"epsilon_high": 1e39}, "less than or equal to 1000000"),
        ({"delta": 1e39}, "less than or equal to 1000000"),
        ({"audit": {"questions": 1_000_000}}, "less than or equal to 10000"),
    ],
    ids=str,
)
def test_options_with_which_nothing_would_be_learned_are_refused(options, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Fgrpo.Config.model_validate(options)


def test_a_chain_with_a_gap_begins_anew():
    """As after a restart from an older checkpoint: nobody is convicted, the baseline is forgotten."""
    nodes, neighborhoods = cluster(Fgrpo, gain="reported")
    lockstep.run(nodes, neighborhoods, 6)
    nodes["n1"].state = replace(nodes["n1"].state, chain=(-1, ""))
    lockstep.run(nodes, neighborhoods, 7, first=6)
    assert nodes["n0"].state.baselines["n1"][0] == 1
    assert nodes["n0"].state.baselines["n2"][0] == 7
    assert nodes["n0"].diagnostics()["convicted"]["n1"] == 0


@pytest.mark.parametrize(
    ("previous_round", "previous", "follows"),
    [
        (0, FIRST.digest, True),
        (0, "0" * 64, False),
        (-1, "", True),
        (7, "0" * 64, True),
    ],
    ids=["it does", "denied", "from the start", "a gap"],
)
def test_a_chain_goes_on_where_it_was_heard_last(previous_round, previous, follows):
    commitment = replace(SECOND, previous_round=previous_round, previous=previous)
    assert goes_on(CHAIN, commitment) == (follows and previous_round != -1)


# audits


@pytest.mark.parametrize(
    ("options", "generators", "scored", "sentence"),
    [
        ({}, ["sort"], [], None),
        ({}, [], [], 'set algorithm.gain = "reported"'),
        ({"gain": "reported"}, [], [], None),
        (
            {},
            ["own:a", "sort"],
            ["own:a"],
            "The family 'own:a' has a scorer.*audit.score = \"sampled\"",
        ),
        ({"audit": {"score": "sampled"}}, ["own:a", "sort"], ["own:a"], None),
        ({"gain": "reported"}, ["own:a"], ["own:a"], None),
        ({"weights": "uniform"}, ["own:a"], ["own:a"], None),
    ],
)
def test_what_can_not_be_audited_is_one_sentence(options, generators, scored, sentence):
    config = Fgrpo.Config.model_validate(options)
    if sentence is None:
        config.check_families(generators, scored)
        return
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        config.check_families(generators, scored)
    assert "\n" not in str(caught.value)


def test_who_names_other_generators_than_first_has_no_weight():
    """Else a liar would be judged by questions it does nothing to."""
    nodes, neighborhoods = cluster(Fgrpo)
    lockstep.run(nodes, neighborhoods, 2)
    nodes["n5"].policy.families = ("f0",)
    lockstep.run(nodes, neighborhoods, 3, first=2)
    verdicts = nodes["n0"].diagnostics()
    assert verdicts["convicted"] == {f"n{k}": float(k == 5) for k in range(1, 6)}
    assert verdicts["weight"]["n5"] == 0


def test_a_model_that_is_no_neighbors_is_audited_with_its_update():
    """In a ring: an honest update, and a model far off."""

    class Far(Fgrpo):
        def round(self, t, view):
            talk = super().round(t, view)
            verb: Any = step(talk)
            far = verb.tensors[1] + 1e3 * torch.randn(LAYOUT.size)
            reply = yield replace(verb, tensors=(verb.tensors[0], far))
            with pytest.raises(StopIteration):
                talk.send(reply)

    nodes, neighborhoods = cluster(Fgrpo, "ring")
    config, given = nodes["n5"].config, nodes["n5"]
    nodes["n5"] = Far(
        config,
        Resources(
            me="n5",
            layout=LAYOUT,
            start=given.parameters,
            gradients=given.gradients,
            policy=given.policy,
        ),
    )
    lockstep.run(nodes, neighborhoods, ROUNDS)
    assert mean_success(nodes, ["n5"]) >= 0.8 * mean_success(played(graph="ring"))


def test_who_is_audited_when_nobody_knows_before():
    nodes, _ = cluster(Fgrpo, audit=AuditConfig(neighbors_per_round=2))
    node = nodes["n0"]
    drawn = []
    for t in range(20):
        node.policy.audit_seed = lambda t, name: hash((t, name, 1))
        drawn.append(tuple(node.chosen(t, dict.fromkeys(nodes))))
    assert all(len(each) == 3 and "n0" in each for each in drawn)
    assert len(set(drawn)) > 3


def test_evidence_is_forgotten_by_and_by():
    d, c = torch.tensor([0.1, -0.1, 0.2], dtype=torch.float64), AuditConfig()
    once, floor = Evidence().observe(d, c), 3 * 0.005**2
    assert (once.total, once.squares) == pytest.approx((0.2, 0.06 + floor))
    twice = once.observe(d, c)
    assert (twice.total, twice.squares) == pytest.approx((0.36, 0.108 + 1.8 * floor))
    assert twice.z == pytest.approx(0.36 / (0.108 + 1.8 * floor) ** 0.5)
    assert Evidence().z == 0


def test_a_difference_that_is_none_is_the_worst():
    assert Evidence().observe(torch.tensor([float("nan")] * 16), AuditConfig()).z == pytest.approx(
        -4, 1e-4
    )


def test_updates_are_bounded_by_the_median():
    assert largest_norm([1.0, 1.0, 1.0, 100.0]) == 2.0
    assert largest_norm([1.0, 1e6]) == 2.0, "one neighbor of a lone one"
    assert largest_norm([0.0, 0.0, 0.0, 1.0]) == 2.0, "the others had nothing to learn"
    assert largest_norm([]) == 0.0
    assert torch.linalg.vector_norm(shortened(DELTA, float(DELTA.norm()), 2.0)) == pytest.approx(2)
    assert shortened(DELTA, float(DELTA.norm()), 10.0) is DELTA


def test_a_share_is_bounded_whatever_is_claimed():
    nodes = played(rounds=6, attacker=liar(), gain="reported", relative=GainConfig(mixing=0.5))
    assert nodes["n0"].diagnostics()["weight"]["n5"] <= 0.5 / 6 + 0.5 * 0.5 + 1e-9
