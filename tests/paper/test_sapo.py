"""SAPO (arXiv 2509.08721): answers are shared, not models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.bandits import FAMILIES, QUESTIONS, TabularPolicy, cluster
from node.algorithms.grpo import Grpo
from node.algorithms.sapo import Sapo, SapoConfig, chosen, decoded, encoded
from node.maths.grpo import grpo_loss
from node.maths.policy import Completions, Prompts, Rollouts
from node.rounds import lockstep
from peer.errors import ConfigurationError
from peer.message import Say, step
from peer.neighborhood import View

CONFIG = SapoConfig(questions=2, num_generations=4, max_completion_length=5, max_prompt_length=6)


def rollouts(rewards=(0.0, 1, 0, 0, 1, 1, 1, 1)):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3])
    mask = (torch.arange(5) < lengths[:, None]).long()
    return Rollouts(
        prompts=Prompts.of([[9] * (k % 4 + 1) for k in range(8)], pad=3),
        completions=Completions(
            torch.randint(50_000, (8, 5), generator=draw),
            mask,
            -torch.rand(8, 5, generator=draw) * mask,
            torch.ones(8, dtype=torch.bool),
        ),
        rewards=torch.tensor(rewards),
        exact=torch.zeros(8, dtype=torch.bool),
        seconds=0.0,
    )


def test_what_is_sent_is_what_is_heard():
    sent = rollouts()
    heard = decoded(encoded(sent, CONFIG), CONFIG, 50_000)
    assert heard is not None
    assert heard.prompts.ids.shape[1] < CONFIG.max_prompt_length, "no wider than the longest"
    assert torch.equal(heard.prompts.mask, sent.prompts.mask)
    one, other = (each.prompts.ids * sent.prompts.mask for each in (sent, heard))
    assert torch.equal(one, other)
    for name in ("ids", "mask", "log_probs"):
        one, other = (getattr(each.completions, name) for each in (sent, heard))
        assert torch.equal(one * sent.completions.mask, other * sent.completions.mask)
    assert torch.equal(heard.rewards, sent.rewards)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompts", 1.0),  # a token that there is not
        ("prompts", -1.0),
        ("answers", 9.0),
        ("log_probs", 0.1),  # a probability above 1
        ("log_probs", -1e9),
        ("figures", 0.0),  # no prompt, no answer
        ("figures", 7.0),
    ],
)
def test_what_can_be_no_answer_counts_for_nothing(field, value):
    sent = encoded(rollouts(), CONFIG)
    for name, shape, place in CONFIG.layout.slices():
        if name == field:
            sent[place].view(shape)[0, 0] = value
    assert decoded(sent, CONFIG, 50_000) is None


def test_groups_that_all_earn_alike_are_not_taken():
    taken = chosen(rollouts(), CONFIG)
    assert taken is not None
    assert taken.rewards.tolist() == [0, 1, 0, 0]
    assert chosen(rollouts([1.0] * 8), CONFIG) is None
    assert chosen(None, CONFIG) is None


def test_no_model_travels():
    nodes, neighborhoods = cluster(Sapo, max_completion_length=1, max_prompt_length=2)
    verb: Any = step(nodes["n0"].round(0, View(neighborhoods["n0"])))
    assert isinstance(verb, Say)
    assert verb.kind == "rollouts"
    assert verb.layout == nodes["n0"].config.layout


def test_who_hears_answers_to_other_questions_learns_them():
    def others(algorithm, **options):
        nodes, neighborhoods = cluster(algorithm, max_completion_length=1, **options)
        lockstep.run(nodes, neighborhoods, 30)
        policy = TabularPolicy("", FAMILIES[1:])
        assert policy.questions == QUESTIONS
        return float(policy.fixed(nodes["n0"].parameters).mean())

    assert others(Sapo, max_prompt_length=2) > others(Grpo) + 0.2


def test_it_is_told_how_much_of_what_is_shared_was_clipped():
    nodes, neighborhoods = cluster(Sapo, max_completion_length=1, max_prompt_length=2)
    ratios = []
    for t in range(6):
        lockstep.run(nodes, neighborhoods, t + 1, first=t)
        diagnostics = nodes["n0"].diagnostics()
        for peer, ratio in diagnostics["clip_ratio"].items():
            assert 0 <= ratio <= (diagnostics["taken"][peer] > 0)
            ratios.append(ratio)
    assert len(ratios) == 30
    assert any(ratios)


def test_who_calls_its_answers_unlikely_is_not_the_whole_gradient():
    """Log-probabilities of -1e4 would be a ratio that is no number."""
    old, now = torch.full((8, 1), -1e4), torch.full((8, 1), -0.5, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0] * 4)
    terms = grpo_loss(now, old, advantage, torch.full((8, 1), 1 / 8), CONFIG.two_sided)
    torch.autograd.backward(terms.loss)
    assert now.grad is not None
    assert now.grad.isfinite().all()
    assert now.grad.abs().max() <= 2


def test_who_has_fewer_questions_than_are_sent_is_one_sentence():
    with pytest.raises(ConfigurationError, match="this node has 64"):
        cluster(Sapo, questions=65, max_prompt_length=2)
