"""GRPO: policy gradients from groups of answers to one prompt, without a critic (arXiv 2402.03300),
with the options of DAPO (2503.14476) and Dr. GRPO (2503.20783). Options and metrics are named as in
TRL.

    advantage  A_g = (r_g − mean)/(std + 1e-4) within a group; std with one degree of freedom off
    ratio      ϱ = π/π_old per token
    loss       −min(ϱA, clip(ϱ, 1 − ε, 1 + ε_high) A) + β (exp(l_ref − l) − (l_ref − l) − 1)

All answers to a prompt are one group of consecutive rows. The loss of a batch is a weighted sum
over tokens (`token_weights`), so parts of a batch add up to it exactly; and where beta is 0, groups
whose rewards are all equal can be left out of the pass while they stay in the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.config import Section

STABILIZER = 1e-4
"""Added to a standard deviation of rewards."""
LARGEST = 20.0
"""Difference of log-probabilities that counts. Somebody else may say how likely its answers were,
and the exponential of more is no number for long."""


class GrpoConfig(Section):
    """Options of the local objective, with TRL's names and defaults where it has them."""

    num_generations: int = Field(default=8, ge=2)
    """G, answers per prompt."""
    loss_type: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    """Normalized per answer, by the longest answer allowed, or by the tokens of the batch."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """By which standard deviation centered rewards are divided."""
    epsilon: float = Field(default=0.2, gt=0, le=1e6)
    """ε: the ratio counts down to 1 − ε."""
    epsilon_high: float | None = Field(default=None, gt=0, le=1e6)
    """The ratio counts up to 1 + ε_high; None: ε."""
    delta: float | None = Field(default=None, gt=1, le=1e6)
    """Upper limit of the ratio where the advantage is negative (two-sided clipping); None: none."""
    beta: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the KL divergence from the reference model; 0 keeps none in memory."""
    questions: int = Field(default=8, ge=1, le=1_000_000)
    """Questions of a step, each with `num_generations` answers."""
    max_completion_length: int = Field(default=16, ge=1)
    """Tokens of an answer at most, its end included; one that is cut off is wrong."""
    mask_truncated_completions: bool = False
    """Learn nothing from answers that are cut off (DAPO): a long one is no worse for that than a
    short one. Their rewards stay in their groups' means."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Of the softmax from which answers are drawn."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Answers are drawn from the smallest set of tokens that has this probability."""
    importance_sampling_cap: float | None = Field(default=3.0, gt=0)
    """Where a generation server draws the answers ([generator] of a node's file): largest weight
    π/π_server of a token; None: they are taken as if the policy had drawn them. TRL's
    vllm_importance_sampling_clip_max (…_cap before) in mode token_truncate."""


@dataclass(frozen=True)
class LossTerms:
    """The loss of some rows of a batch, and what TRL logs of it as sums over tokens."""

    loss: Tensor
    """Scalar, differentiable; over all parts of a batch it adds up to the batch's loss."""
    clipped_low: float
    """Tokens whose ratio fell below 1 − ε with a negative advantage."""
    clipped_high: float
    """Tokens whose ratio rose above 1 + ε_high with a positive advantage."""
    kl: float
    """Of every token from the reference model, summed; 0 without one."""
    tokens: float
    """Tokens that count."""


def advantages(rewards: Tensor, config: GrpoConfig) -> Tensor:
    """A of every answer, [n] for rewards [n], n a multiple of `num_generations`; 0 in groups
    whose rewards are all equal.
    """
    groups = rewards.view(-1, config.num_generations)
    centered = groups - groups.mean(dim=1, keepdim=True)
    match config.scale_rewards:
        case "group":
            centered = centered / (groups.std(dim=1, keepdim=True) + STABILIZER)
        case "batch":
            centered = centered / (rewards.std() + STABILIZER)
    return torch.where(has_spread(rewards, config)[:, None], centered, 0.0).flatten()


def has_spread(rewards: Tensor, config: GrpoConfig) -> Tensor:
    """Which groups have rewards that differ, bool [n / num_generations]; others: no advantage."""
    groups = rewards.view(-1, config.num_generations)
    return groups.amax(dim=1) != groups.amin(dim=1)


def loss_mask(mask: Tensor, ended: Tensor, config: GrpoConfig) -> Tensor:
    """The tokens that are learned from, [n, T]: of an answer's (`mask` [n, T]), where it has an end
    (`ended` [n]) or that does not matter.
    """
    return mask * ended[:, None] if config.mask_truncated_completions else mask


def token_weights(mask: Tensor, config: GrpoConfig, max_completion_length: int) -> Tensor:
    """What every token of the batch weighs in its loss, [n, T]. `mask` [n, T] is 1 for the tokens
    of an answer, its end-of-sequence token included, as far as they are learned from.
    """
    mask = mask.to(torch.float32)
    match config.loss_type:
        case "grpo":
            return mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * len(mask))
        case "dr_grpo":
            return mask / (len(mask) * max_completion_length)
        case "dapo":
            return mask / mask.sum().clamp(min=1)


def importance_weights(log_probs: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """min(π/π_sampled, cap) of every token, [n, T], for log-probabilities under the policy in
    training and under the one that sampled; truncated importance sampling.
    """
    return torch.exp((log_probs - sampled).clamp(max=LARGEST)).clamp(max=cap)


def grpo_loss(
    log_probs: Tensor,
    old: Tensor,
    advantage: Tensor,
    weights: Tensor,
    config: GrpoConfig,
    *,
    reference: Tensor | None = None,
    correction: Tensor | None = None,
) -> LossTerms:
    """The loss of some rows.

    Args:
        log_probs: of the tokens under the policy in training, [n, T].
        old: under the policy that sampled, or was current before the first step, [n, T].
        advantage: of every row, [n].
        weights: `token_weights` of these rows, [n, T].
        reference: log-probabilities under the reference model, [n, T]; needed where beta > 0.
        correction: importance weights of tokens that another generator sampled, [n, T].
    """
    high = 1 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
    low = 1 - config.epsilon
    counts = weights > 0
    log_probs = torch.where(counts, log_probs, old)  # no gradient, and no NaN, behind an answer
    ratio = torch.exp((log_probs - old).clamp(max=LARGEST))
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    a = advantage[:, None]
    per_token = -torch.minimum(bounded * a, ratio.clamp(low, high) * a)
    if correction is not None:
        per_token = per_token * correction
    kl = torch.zeros(())
    if config.beta:
        assert reference is not None
        apart = torch.where(counts, reference - log_probs, 0.0).clamp(max=LARGEST)
        divergence = torch.exp(apart) - apart - 1
        per_token = per_token + config.beta * divergence
        kl = divergence.detach()[counts].sum()
    below, above = (ratio < low) & (a < 0), (ratio > high) & (a > 0)
    return LossTerms(
        loss=(per_token * weights).sum(),
        clipped_low=float((below & counts).sum()),
        clipped_high=float((above & counts).sum()),
        kl=float(kl),
        tokens=float(counts.sum()),
    )
