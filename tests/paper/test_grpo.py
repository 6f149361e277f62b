"""GRPO's loss (arXiv 2402.03300) with the options of DAPO and Dr. GRPO, against a naive oracle; and
against TRL itself where it is installed.
"""

from __future__ import annotations

from itertools import product
from math import exp
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit.golden import EQUATIONS as CASES
from node.maths.grpo import (
    GrpoConfig,
    advantages,
    grpo_loss,
    has_spread,
    importance_weights,
    loss_mask,
    token_weights,
)

G, T, LONGEST = 4, 7, 10
LOSSES = ["grpo", "dr_grpo", "dapo"]
OPTIONS = [
    {},
    {"epsilon": 0.05, "epsilon_high": 0.3},
    {"delta": 1.1},
    {"beta": 0.04},
    {"beta": 0.1, "delta": 1.2, "epsilon_high": 0.28},
]


def config(**options):
    return GrpoConfig(num_generations=G, **options)


def batch(seed=0, groups=3):
    """log-probabilities of three policies near each other, a mask of answers, and rewards."""
    generator = torch.Generator().manual_seed(seed)
    n = groups * G
    old = -torch.rand((n, T), generator=generator, dtype=torch.float64) * 3
    now = old + 0.3 * torch.randn((n, T), generator=generator, dtype=torch.float64)
    reference = old + 0.3 * torch.randn((n, T), generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (n,), generator=generator)
    mask = (torch.arange(T)[None] < lengths[:, None]).to(torch.float64)
    rewards = torch.randint(0, 4, (n,), generator=generator).to(torch.float64)
    return now.requires_grad_(), old, reference, mask, rewards


def naive(now, old, reference, mask, advantage, c):
    """Token by token, in Python floats."""
    n = len(mask)
    high = 1 + (c.epsilon if c.epsilon_high is None else c.epsilon_high)
    tokens = mask.sum().item()
    total = 0.0
    for i, t in product(range(n), range(T)):
        if not mask[i, t]:
            continue
        a, ratio = advantage[i].item(), exp((now[i, t] - old[i, t]).item())
        clipped = min(max(ratio, 1 - c.epsilon), high) * a
        plain = (ratio if c.delta is None else min(ratio, c.delta)) * a
        apart = (reference[i, t] - now[i, t]).item()
        loss = -min(plain, clipped) + c.beta * (exp(apart) - apart - 1)
        total += (
            loss
            / {
                "grpo": mask[i].sum().item() * n,
                "dr_grpo": n * LONGEST,
                "dapo": tokens,
            }[c.loss_type]
        )
    return total


def loss_of(now, old, reference, mask, advantage, c):
    weights = token_weights(mask, c, LONGEST).to(now.dtype)
    return grpo_loss(now, old, advantage, weights, c, reference=reference)


def test_an_advantage_is_the_reward_against_its_group():
    case = CASES["grpo_advantage"]
    found = advantages(torch.tensor(case["R"], dtype=torch.float64), GrpoConfig(num_generations=8))
    assert found.tolist() == pytest.approx(case["A"])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_know_no_offset_and_scaling_by_a_std_no_scale(scale):
    rewards = torch.tensor([2.0, 0, 1, 1, 5, 5, 5, 9], dtype=torch.float64) * 1000
    c = config(scale_rewards=scale)
    moved = advantages(3 * rewards + 7, c)
    factor = 3.0 if scale == "none" else 1.0
    torch.testing.assert_close(moved, factor * advantages(rewards, c), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_spread_teaches_nothing(scale):
    rewards = torch.tensor([0.1] * G + [0.0, 0, 0, 1])
    assert advantages(rewards, config(scale_rewards=scale))[:G].tolist() == [0.0] * G
    assert has_spread(rewards, config()).tolist() == [False, True]


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="num_generations"):
        GrpoConfig(num_generations=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_is_that_of_a_loop_over_tokens(loss_type, options):
    now, old, reference, mask, rewards = batch()
    c = config(loss_type=loss_type, **options)
    advantage = advantages(rewards, c)
    terms = loss_of(now, old, reference, mask, advantage, c)
    assert terms.loss.item() == pytest.approx(
        naive(now, old, reference, mask, advantage, c), rel=1e-6
    )
    assert terms.tokens == mask.sum().item()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_parts_of_a_batch_add_up_and_groups_without_spread_can_be_left_out(loss_type):
    now, old, _, mask, rewards = batch(groups=4)
    rewards[G : 2 * G] = 2.0
    c = config(loss_type=loss_type)
    advantage, weights = advantages(rewards, c), token_weights(mask, c, LONGEST).to(now.dtype)
    whole = grpo_loss(now, old, advantage, weights, c)
    [gradient] = torch.autograd.grad(whole.loss, now)
    parts = [slice(0, G), slice(2 * G, 3 * G), slice(3 * G, 4 * G)]
    summed = sum(grpo_loss(now[p], old[p], advantage[p], weights[p], c).loss for p in parts)
    assert isinstance(summed, torch.Tensor)
    [in_parts] = torch.autograd.grad(summed, now)
    torch.testing.assert_close(summed, whole.loss)
    torch.testing.assert_close(in_parts, gradient)


def test_what_follows_an_answer_counts_for_nothing():
    now, old, reference, mask, rewards = batch()
    wild = torch.where(mask > 0, now.detach(), float("inf")).requires_grad_()
    c = config(beta=0.1)
    advantage = advantages(rewards, c)
    one, other = (loss_of(x, old, reference, mask, advantage, c) for x in (now, wild))
    assert one.loss.item() == other.loss.item()
    assert one.kl == other.kl
    [gradient] = torch.autograd.grad(other.loss, wild)
    assert gradient.isfinite().all()
    assert not gradient[mask == 0].any()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_truncated_completions_are_masked_and_stay_in_their_groups(loss_type):
    now, old, reference, mask, rewards = batch()
    ended = torch.arange(len(mask)) % 3 != 0
    c = config(loss_type=loss_type, beta=0.1, mask_truncated_completions=True)
    advantage, learned = advantages(rewards, c), loss_mask(mask, ended, c)
    terms = loss_of(now, old, reference, learned, advantage, c)
    expected = naive(now, old, reference, mask * ended[:, None], advantage, c)
    assert terms.loss.item() == pytest.approx(expected, rel=1e-6)
    assert terms.tokens == mask[ended].sum().item()
    [gradient] = torch.autograd.grad(terms.loss, now)
    assert not gradient[~ended].any()
    assert loss_mask(mask, ended, config()) is mask, "unless it is asked for"


def test_clipped_tokens_are_counted():
    old = torch.zeros(2, 2, dtype=torch.float64)
    now = torch.tensor([[0.5, 0.0], [-0.5, 0.5]], dtype=torch.float64)
    weights = torch.full((2, 2), 0.25, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    terms = grpo_loss(now, old, advantage, weights, config())
    assert (terms.clipped_high, terms.clipped_low) == (1, 1)


@pytest.mark.extras
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_are_those_of_trl(loss_type, options):
    trainer = pytest.importorskip(
        "trl.trainer.grpo_trainer", reason="pip install --no-deps trl datasets …: .ci/run"
    ).GRPOTrainer
    now, old, reference, mask, rewards = batch()
    c = config(loss_type=loss_type, **options)
    advantage = advantages(rewards, c)
    ours = loss_of(now, old, reference, mask, advantage, c).loss
    theirs = trainer._compute_loss(
        _trainer(c, now, mask), None, inputs(old, reference, mask, advantage)
    )
    _assert_equal(ours, theirs, now)


@pytest.mark.extras
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_with_importance_weights_loss_and_gradient_are_those_of_trl(loss_type, options):
    trainer = pytest.importorskip(
        "trl.trainer.grpo_trainer", reason="pip install --no-deps trl datasets …: .ci/run"
    ).GRPOTrainer
    now, old, reference, mask, rewards = batch()
    c = config(loss_type=loss_type, **options)
    advantage, weights = advantages(rewards, c), token_weights(mask, c, LONGEST).to(now.dtype)
    sampled = old + 0.7 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    correction = importance_weights(old, sampled, 1.5)
    ours = grpo_loss(
        now, old, advantage, weights, c, reference=reference, correction=correction
    ).loss
    expected = torch.exp((old - sampled) * mask).clamp(max=1.5)  # as TRL's _generate_and_score_…
    assert not torch.equal(ours, loss_of(now, old, reference, mask, advantage, c).loss)
    theirs = trainer._compute_loss(
        _trainer(c, now, mask, served=True),
        None,
        {**inputs(old, reference, mask, advantage), "importance_sampling_ratio": expected},
    )
    _assert_equal(ours, theirs, now)


@pytest.mark.extras
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_without_truncated_completions_loss_and_gradient_are_those_of_trl(loss_type, options):
    trainer = pytest.importorskip(
        "trl.trainer.grpo_trainer", reason="pip install --no-deps trl datasets …: .ci/run"
    ).GRPOTrainer
    now, old, reference, mask, rewards = batch()
    c = config(loss_type=loss_type, mask_truncated_completions=True, **options)
    advantage, is_truncated = advantages(rewards, c), torch.arange(len(mask)) % 3 == 0
    learned = loss_mask(mask, ~is_truncated, c)
    ours = loss_of(now, old, reference, learned, advantage, c).loss
    expected = mask * (~is_truncated).unsqueeze(1).int()  # as TRL's _generate_and_score_…
    theirs = trainer._compute_loss(
        _trainer(c, now, expected), None, inputs(old, reference, expected, advantage)
    )
    _assert_equal(ours, theirs, now)


def test_importance_weights_are_cut_off_above_only():
    log_probs, sampled = torch.tensor([-1.0, -1.0, -1.0, -5.0]), torch.tensor([-1.0, -3.0, -1e5, 0])
    weights = importance_weights(log_probs, sampled, 3.0)
    assert weights.tolist() == pytest.approx([1.0, 3.0, 3.0, exp(-5)])


def inputs(old, reference, mask, advantage):
    """What TRL's loss is given."""
    return {
        "prompt_ids": torch.zeros(len(mask), 1),
        "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": advantage,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }


def _assert_equal(ours, theirs, now):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss, now, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


def _trainer(c, now, mask, served=False):
    """As much of TRL's trainer as its loss reads."""
    high = c.epsilon if c.epsilon_high is None else c.epsilon_high
    args = SimpleNamespace(
        delta=c.delta, use_bias_correction_kl=False, steps_per_generation=1, report_to=[]
    )
    metrics = {"train": _Ignore(), "eval": _Ignore()}
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(mask), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=c.beta, loss_type=c.loss_type, args=args,
        epsilon_low=c.epsilon, epsilon_high=high, use_vllm=served, max_completion_length=LONGEST,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ), _metrics=metrics,
        _entropy_bonus_enabled=False, vllm_importance_sampling_correction=served,
    )  # fmt: skip


class _Ignore(dict[Any, Any]):
    def __missing__(self, key):
        return []
