"""Local rounds of GRPO: what algorithms by reinforcement share. A supervised warm-up together, then
E steps of a policy from its own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from node.config import AlgorithmConfig, Section
from node.figures import Diagnostic
from node.maths.adam import AdamConfig, adam_steps, clip_norm_, drain, upcast
from node.maths.grpo import GrpoConfig, advantages
from node.maths.policy import Policy, PolicyGradient, Rollouts
from peer.message import Answered, IncrementalPayload, mix

DIAGNOSTICS = (
    Diagnostic("reward", "Mean reward of the own answers.", per_neighbor=False),
    Diagnostic("rollouts_exact", "Share of them that are right.", per_neighbor=False),
    Diagnostic("frac_reward_zero_std", "Share of groups that all earn alike.", per_neighbor=False),
    Diagnostic("entropy", "Of the own answers' tokens, in nats.", per_neighbor=False),
    Diagnostic("kl", "From the model that reinforcement began with.", per_neighbor=False),
    Diagnostic("clip_ratio_low", "Share of tokens clipped below.", per_neighbor=False),
    Diagnostic("clip_ratio_high", "Share of tokens clipped above.", per_neighbor=False),
    Diagnostic("tokens", "Of the round's own answers.", per_neighbor=False),
    Diagnostic("completion_length", "Mean tokens of the own answers.", per_neighbor=False),
    Diagnostic("completions_clipped_ratio", "Share of them that are cut off.", per_neighbor=False),
    Diagnostic("grad_norm", "Norm of the gradient before it is clipped.", per_neighbor=False),
    Diagnostic("mismatch", "Log-probabilities, generator and trainer.", per_neighbor=False),
    Diagnostic("generated_per_second", "Tokens by CPU-second.", per_neighbor=False),
    Diagnostic("trained_per_second", "Tokens by CPU-second.", per_neighbor=False),
    Diagnostic("scorer_failures", "Answers so far on which a scorer failed.", per_neighbor=False),
)


class WarmUp(Section):
    """Supervised rounds before reinforcement: a policy that is never right learns nothing."""

    rounds: int = Field(default=0, ge=0)
    """Rounds of DSGD-Adam on questions and answers; batches as `privacy.batch` says."""
    lr: float = Field(default=3e-3, gt=0)
    """Their step size."""


class GrpoRunConfig(GrpoConfig, AdamConfig, AlgorithmConfig):
    lr: float = Field(default=1e-3, gt=0)
    """Step size of Adam."""
    a2: float = Field(default=0.99, ge=0, lt=1)
    """a₂: decay of the second moment; rounds are few."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is scaled to it. None: no bound."""
    local_steps: int = Field(default=2, ge=1)
    """E, steps of a round; each asks anew."""
    advantage: Literal["group", "history"] = "group"
    """group: GRPO's. history: reward minus the moving mean of the own past ones (RAE)."""
    history: float = Field(default=0.95, ge=0, lt=1)
    """Decay of that mean."""
    warmup: WarmUp = WarmUp()
    """Supervised rounds before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    x: Tensor
    """θ_i, float32 [d]."""
    m: Tensor
    v: Tensor
    step: int = 0
    """Adam's steps since the moments were zero."""
    reference: Tensor | None = None
    """beta > 0: the model that reinforcement began with."""
    past: tuple[int, float] = (0, 0.0)
    """Rewards of the own answers so far: how many steps, and their moving mean."""

    @classmethod
    def at(cls, x: Tensor) -> Self:
        """With moments of zero."""
        x = upcast(x)
        return cls(x=x, m=torch.zeros_like(x), v=torch.zeros_like(x))


S = TypeVar("S", bound=LocalState)


def warm_up(config: GrpoRunConfig, state: S, gradient: Callable[[Tensor], Tensor]) -> Answered[S]:
    """The state after a round of DSGD-Adam on questions and their answers; moments change in
    place.
    """
    half = clip_norm_(gradient(state.x), config.clip_norm)
    steps = adam_steps(
        config, state.x, state.m, state.v, half, lr=config.warmup.lr, step=state.step
    )
    x = yield from mix("state", IncrementalPayload(half, steps), streaming=True)
    return replace(state, x=x, step=state.step + 1)


def begin(config: GrpoRunConfig, state: S) -> S:
    """The state that a round of reinforcement starts from: in the first, moments are zero, and the
    model is the reference."""
    if state.past[0]:
        return state
    reference = state.x.clone() if config.beta else None
    return replace(without_moments(state), reference=reference)


def without_moments(state: S) -> S:
    """As before Adam's first step."""
    return replace(state, m=torch.zeros_like(state.m), v=torch.zeros_like(state.v), step=0)


def local_steps(
    config: GrpoRunConfig, policy: Policy, t: int, state: S, span: slice = slice(None)
) -> tuple[S, Tensor, dict[str, float]]:
    """E steps from the state's x, of the parameters of `span`; the state after them, with x as it
    was, the new parameters [d], and figures by the names of DIAGNOSTICS.
    """
    x, learned, norms = state.x.clone(), [], []
    state = replace(state, m=state.m.clone(), v=state.v.clone())
    for step in range(config.local_steps):
        rollouts = policy.rollouts(x, config, t, step)
        advantage, state = own_advantage(config, rollouts, state)
        update = policy.gradient(x, rollouts, config, advantage, state.reference)
        learned.append((rollouts, update))
        norms.append(norm_of(update, span))
        state = stepped(config, x, update, state, span)
    shown = {**figures(learned), "grad_norm": sum(norms) / len(norms)}
    return state, x, {**shown, "scorer_failures": float(policy.scorer_failures)}


def norm_of(update: PolicyGradient, span: slice) -> float:
    """Before the step, which clips the gradient and writes over it."""
    if update.gradient is None:
        return 0.0
    return float(torch.linalg.vector_norm(update.gradient[span]))


def stepped(
    config: GrpoRunConfig, x: Tensor, update: PolicyGradient, state: S, span: slice = slice(None)
) -> S:
    """The state after a step of Adam; x [d] and the moments change in place, and the gradient is
    used up. Without one there is none."""
    if update.gradient is None or not update.gradient.sum().isfinite():
        return state
    g = clip_norm_(update.gradient[span], config.clip_norm)
    m, v = state.m[span], state.v[span]
    drain(adam_steps(config, x[span], m, v, g, lr=config.lr, step=state.step))
    x[span] = g
    return replace(state, step=state.step + 1)


def own_advantage(config: GrpoRunConfig, rollouts: Rollouts, state: S) -> tuple[Tensor, S]:
    """Of every answer, [n], and the state that knows their rewards."""
    steps, mean = state.past
    now = float(rollouts.rewards.mean())
    decay = config.history if steps else 0.0
    after = replace(state, past=(steps + 1, decay * mean + (1 - decay) * now))
    if config.advantage == "history":
        return rollouts.rewards - (mean if steps else now), after
    return advantages(rollouts.rewards, config), after


def figures(learned: Sequence[tuple[Rollouts, PolicyGradient]]) -> dict[str, float]:
    """Of a round's local steps, by names of DIAGNOSTICS: means over the steps."""
    answers = [rollouts for rollouts, _ in learned]
    updates = [update for _, update in learned]
    tokens = sum(float(each.completions.mask.sum()) for each in answers)
    count = sum(len(each.rewards) for each in answers)
    drawing, training = (sum(each.seconds for each in part) for part in (answers, updates))

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(learned)

    return {
        "reward": mean(float(each.rewards.mean()) for each in answers),
        "rollouts_exact": mean(float(each.exact.double().mean()) for each in answers),
        "frac_reward_zero_std": mean(each.zero_spread for each in updates),
        "entropy": mean(each.entropy for each in updates),
        "kl": mean(each.kl for each in updates),
        "clip_ratio_low": mean(each.clip_low for each in updates),
        "clip_ratio_high": mean(each.clip_high for each in updates),
        "tokens": tokens,
        "completion_length": tokens / count,
        "completions_clipped_ratio": mean(
            1 - float(each.completions.ended.double().mean()) for each in answers
        ),
        "mismatch": mean(each.mismatch for each in updates),
        "generated_per_second": tokens / max(drawing, 1e-9),
        "trained_per_second": tokens / max(training, 1e-9),
    }
