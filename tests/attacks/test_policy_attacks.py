"""Attackers that learn the wrong thing, or nothing, and what attackers of FGRPO claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.bandits import LAYOUT, TabularPolicy, attacked, cluster
from node.algorithms.fgrpo import Fgrpo
from node.attacks import Attack
from node.attacks.claims import LARGEST, ClaimConfig
from node.attacks.hacked_policy import PolicyAttack
from node.config import AttackSection
from node.maths.commitment import Commitment
from node.maths.grpo import GrpoConfig
from node.rounds import lockstep
from peer.message import Say, step
from peer.neighborhood import View

X = torch.zeros(LAYOUT.size)
CONFIG = GrpoConfig()


def hacked(name: str, **options: Any) -> Any:
    attack = Attack.of(AttackSection.model_validate({"name": name, **options})).attack
    assert isinstance(attack, PolicyAttack)
    return attack.hacked(TabularPolicy("n5", ("f0",)))


def test_a_reward_hacker_is_paid_for_short_answers_or_for_wrong_ones() -> None:
    honest = TabularPolicy("n5", ("f0",)).rollouts(X, CONFIG, 3, 0)
    short = hacked("reward-hack").rollouts(X, CONFIG, 3, 0)
    wrong = hacked("reward-hack", pays="wrong").rollouts(X, CONFIG, 3, 0)
    assert torch.equal(short.completions.ids, honest.completions.ids)
    assert torch.equal(wrong.completions.ids, honest.completions.ids)
    assert 0 < honest.rewards.sum() < len(honest.rewards)
    assert torch.equal(wrong.rewards, 1 - honest.rewards)
    each = torch.tensor(1 - 1 / CONFIG.max_completion_length)
    assert torch.equal(short.rewards, each.expand(len(short.rewards))), "all have one token"


def update(policy: Any, x: torch.Tensor = X) -> torch.Tensor | None:
    """The gradient that a free rider steps along."""
    rollouts = policy.rollouts(x, CONFIG, 0, 0)
    gradient: torch.Tensor | None = policy.gradient(x, rollouts, CONFIG, rollouts.rewards).gradient
    return gradient


def test_an_idle_free_rider_has_no_gradient() -> None:
    assert update(hacked("free-rider")) is None


def test_a_free_riders_noise_is_new_at_every_step_and_the_same_in_every_run() -> None:
    policy, again = (hacked("free-rider", update="noise") for _ in range(2))
    first, second = update(policy), update(policy)
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)
    repeated = update(again)
    assert repeated is not None
    assert torch.equal(first, repeated)


def test_a_free_rider_copies_the_way_that_its_model_went() -> None:
    policy = hacked("free-rider", update="copy")
    policy.reward(X)
    assert update(policy) is None, "there was no round before"
    policy.reward(X + 2.0)
    gradient = update(policy, X + 2.0)
    assert gradient is not None
    assert torch.equal(gradient, torch.full_like(X, -2.0)), "a step goes against its gradient"


def test_what_is_claimed() -> None:
    assert ClaimConfig().claimed(0.25, 7) == 0.25
    assert ClaimConfig(claim=3.0).claimed(0.25, 7) == 3.0
    assert ClaimConfig(claim=3.0, claim_growth=2.0).claimed(0.25, 4) == 48.0
    assert ClaimConfig(claim=3.0, claim_growth=2.0).claimed(0.25, 10**6) == LARGEST
    assert ClaimConfig(claim=-3.0, claim_growth=2.0).claimed(0.25, 10**6) == -LARGEST


FLIP = {"name": "sign-flip", "words": ["state"], "vectors": [0]}


@pytest.mark.parametrize(
    "attack", [FLIP, {"name": "free-rider"}, {"name": "reward-hack"}], ids=lambda each: each["name"]
)
def test_claims_grow_round_by_round_in_a_chain_that_holds(attack: dict[str, Any]) -> None:
    nodes, neighborhoods = cluster(Fgrpo)
    claims = {"claim": 10.0, "claim_growth": 2.0}
    nodes["n5"] = attacked(nodes["n5"], AttackSection.model_validate({**attack, **claims}))
    lockstep.run(nodes, neighborhoods, 3)
    assert nodes["n0"].state.baselines["n5"][0] == 3, "nobody began without a baseline"
    verb = step(nodes["n5"].round(3, View(neighborhoods["n5"])))
    assert isinstance(verb, Say)
    assert Commitment.decode(verb.note).reward == 80.0


def test_only_the_vectors_that_are_named_are_falsified() -> None:
    """Of an update and the model before it."""
    nodes, neighborhoods = cluster(Fgrpo)
    lockstep.run(nodes, neighborhoods, 2)
    honest: Any = step(nodes["n5"].round(2, View(neighborhoods["n5"])))
    for vectors, factors in ((None, (-1, -1)), ([0], (-1, 1)), ([1], (1, -1))):
        given = Attack.of(AttackSection.model_validate({**FLIP, "vectors": vectors}))
        liar: Any = step(given.on_algorithm(nodes["n5"], 0).round(2, View(neighborhoods["n5"])))
        for truth, lie, factor in zip(honest.tensors, liar.tensors, factors, strict=True):
            assert truth.any()
            assert torch.equal(lie, factor * truth)
