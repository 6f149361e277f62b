"""Every message attack against its formula, written out in NumPy."""

import numpy as np
import pytest
import torch

from node.attacks import ATTACKS, Attack
from node.attacks.byzantine import MessageAttack, OutgoingVector
from node.config import AttackSection
from node.randomness import public_generator

CHANCE = np.random.default_rng(5)
TRUTH, QUESTION = CHANCE.normal(size=6), CHANCE.normal(size=6)
HEARD = {peer: CHANCE.normal(size=6) for peer in "bcd"}
WEIGHT = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
ALL = np.stack([TRUTH, *HEARD.values()])


def lie(name, kind="state", parameters=True, heard=HEARD, weight=WEIGHT, **options):
    """What the attacker a says."""
    said = OutgoingVector(
        kind=kind,
        parameters=parameters,
        truth=torch.from_numpy(TRUTH.copy()),
        heard={peer: torch.from_numpy(x) for peer, x in heard.items()},
        question=torch.from_numpy(QUESTION) if kind == "answer" else None,
        weight=weight,
        me="a",
        draw=lambda: public_generator(1, "a", 2, "test"),
    )
    attack = Attack.of(AttackSection(name=name, **options)).attack
    assert isinstance(attack, MessageAttack)
    found = attack.lie(said)
    np.testing.assert_array_equal(said.truth.numpy(), TRUTH, "the truth itself is left as it is")
    return found.numpy()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sign-flip", {}, -TRUTH),
        ("sign-flip", {"factor": 3.0}, -3 * TRUTH),
        ("scaling", {}, 10 * TRUTH),
        ("scaling", {"factor": -2.0}, -2 * TRUTH),
        ("zero", {}, 0 * TRUTH),
        ("alie", {}, ALL.mean(0) - 1.5 * ALL.std(0)),
        ("alie", {"z": -0.5}, ALL.mean(0) + 0.5 * ALL.std(0)),
        ("inner-product", {}, -0.5 * ALL.mean(0)),
        ("inner-product", {"epsilon": 4.0}, -4 * ALL.mean(0)),
        ("state", {"lie": "scaling", "factor": 7.0}, 7 * TRUTH),
    ],
)
@pytest.mark.parametrize("kind", ["answer", "state"])
def test_formulas(name, options, expected, kind):
    np.testing.assert_allclose(lie(name, kind, **options), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["answer", "state"])
def test_gaussian_is_noise_without_the_truth(kind):
    drawn = torch.randn(6, dtype=torch.float64, generator=public_generator(1, "a", 2, "test"))
    np.testing.assert_allclose(lie("gaussian", kind, std=3.0), 3 * drawn.numpy())


def test_echo_gives_the_question_back_and_repeats_the_first_neighbor():
    np.testing.assert_array_equal(lie("echo", "answer"), QUESTION)
    np.testing.assert_array_equal(lie("echo", "state"), HEARD["b"])


@pytest.mark.parametrize("epsilon", [1.0, 1.5])
def test_dissensus_undoes_the_pull_of_the_victims_neighbors(epsilon):
    """x_i − ε·Σ_k w_ik (x_k − x_i)/w_ib; with ε = 1 the victim's mixing leaves it where it is."""
    middle = np.median(np.stack(list(HEARD.values())), 0)
    victim = max(HEARD, key=lambda peer: np.linalg.norm(HEARD[peer] - middle))
    pull = sum(WEIGHT[k] * (HEARD[k] - HEARD[victim]) for k in HEARD)
    found = lie("dissensus", epsilon=epsilon)
    np.testing.assert_allclose(found, HEARD[victim] - epsilon * pull / WEIGHT["a"], rtol=1e-12)
    mixed = HEARD[victim] + pull + WEIGHT["a"] * (found - HEARD[victim])
    np.testing.assert_allclose(mixed, HEARD[victim] + (1 - epsilon) * pull, rtol=1e-9)


def test_dissensus_leaves_out_who_lies_more_than_others():
    """Two attackers that listen to each other would be beyond all numbers within tens of rounds."""
    for far in (1e3, float("inf"), float("nan")):
        found = lie("dissensus", heard={**HEARD, "e": np.full(6, far)}, weight={**WEIGHT, "e": 0.1})
        assert np.linalg.norm(found) < 50
    np.testing.assert_array_equal(lie("dissensus", heard={"b": np.full(6, float("nan"))}), TRUTH)


def test_dissensus_is_about_parameters_only():
    for kind, parameters in (("answer", False), ("state", False)):
        np.testing.assert_array_equal(lie("dissensus", kind, parameters), TRUTH)


@pytest.mark.parametrize("name", ["alie", "echo", "dissensus"])
def test_who_heard_nothing_yet_says_the_truth(name):
    np.testing.assert_array_equal(lie(name, heard={}), TRUTH)


def test_every_message_attack_has_a_formula_here():
    tested = {
        name
        for name in ATTACKS
        if isinstance(Attack.of(AttackSection(name=name)).attack, MessageAttack)
    }
    assert tested == set(ATTACKS) - {"label-flip", "feature-noise", "reward-hack", "free-rider"}
    assert tested == {
        "sign-flip",
        "scaling",
        "zero",
        "gaussian",
        "echo",
        "alie",
        "inner-product",
        "dissensus",
        "state",
    }
