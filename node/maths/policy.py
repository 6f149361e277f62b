"""A policy that answers questions and is rewarded: what it says, and what algorithms may ask of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from node.config import GeneratorSection
from node.hooks import no_op
from node.maths.grpo import GrpoConfig
from node.randomness import Keys
from peer.message import Peer


@dataclass(frozen=True, slots=True)
class Draws:
    """What one node's policy draws from, and what it calls while it works."""

    me: Peer
    seed: int
    """Public: of questions and answers in training."""
    keys: Keys
    """Secret: of questions by which others are audited."""
    yield_point: Callable[[], None] = no_op
    warn: Callable[[str], None] = no_op
    generator: GeneratorSection | None = None
    """Who draws the answers; None: the policy itself."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a batch, padded on the left."""

    ids: Tensor
    """int64 [n, P]."""
    mask: Tensor
    """int64 [n, P]: 1 for the prompt's tokens."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], pad: int) -> Prompts:
        longest = max(map(len, prompts))
        ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return cls(torch.tensor(ids), torch.tensor(mask))

    def repeated(self, times: int) -> Prompts:
        """Each prompt `times` times, in consecutive rows."""
        return Prompts(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def rows(self, rows: Tensor) -> Prompts:
        """These rows [k], int64."""
        return Prompts(self.ids[rows], self.mask[rows])


@dataclass(frozen=True, slots=True)
class Completions:
    """Answers to the prompts of a batch, padded on the right."""

    ids: Tensor
    """int64 [n, T]."""
    mask: Tensor
    """int64 [n, T]: 1 for the answer's tokens, its end included."""
    log_probs: Tensor
    """Of every token when it was drawn, float32 [n, T]; 0 behind an answer."""
    ended: Tensor
    """Which have an end, bool [n]; the others were cut off at the limit."""

    def rows(self, rows: Tensor) -> Completions:
        """These rows [k], int64."""
        return Completions(self.ids[rows], self.mask[rows], self.log_probs[rows], self.ended[rows])


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers that were drawn from the policy, `num_generations` to a question in consecutive rows,
    and what they earned."""

    prompts: Prompts
    completions: Completions
    rewards: Tensor
    """What is learned from, float32 [n]."""
    exact: Tensor
    """Which are right, bool [n]."""
    seconds: float
    """CPU time that drawing them took; of a server, time."""


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """The gradient of the GRPO loss of some rollouts, and figures by TRL's names."""

    gradient: Tensor | None
    """Flat float32 [d]; None: no group's rewards differ, so nothing is learned from them."""
    entropy: float
    """Mean over the answers' tokens, in nats."""
    clip_low: float
    """Share of tokens whose ratio was clipped below."""
    clip_high: float
    """Share of tokens whose ratio was clipped above."""
    kl: float
    """Mean over the tokens, from the reference model."""
    zero_spread: float
    """Share of groups whose rewards are all equal."""
    mismatch: float
    """Mean difference of log-probabilities between the one who drew and the one who is trained."""
    seconds: float
    """CPU time that it took."""


class Policy(Protocol):
    """What an algorithm asks of the task's policy. x: flat parameters [d]. Every method lets
    neighbors be answered in between."""

    families: tuple[str, ...]
    """Of the own questions: generators that anybody can ask."""
    evaluation: bytes
    """SHA-256 of the fixed questions by which `reward` goes."""
    questions: int
    """How many the node learns from."""
    vocabulary: int
    """Number of different tokens."""

    @property
    def tokens_read(self) -> int:
        """To tell probabilities so far; drawn answers count."""
        ...

    @property
    def scorer_failures(self) -> int:
        """Answers so far on which a scorer of somebody's own failed; they count as wrong."""
        ...

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        """Answers to own questions in a local step of round t."""
        ...

    def gradient(
        self,
        x: Tensor,
        rollouts: Rollouts,
        config: GrpoConfig,
        advantages: Tensor,
        reference: Tensor | None = None,
        *,
        on_policy: bool = True,
    ) -> PolicyGradient:
        """At x, for advantages [n]; `reference` are the parameters of the model that KL is from.
        Where others drew the answers, the ratio is to the log-probabilities that came with them."""
        ...

    def reward(self, x: Tensor) -> float:
        """Expected reward on the fixed questions: the scaled probability of a right answer. As in
        all that follows, it is estimated from answers where a scorer says what is right."""
        ...

    def fixed(self, x: Tensor) -> Tensor:
        """Probabilities that x answers the fixed questions right, float64 [n]."""
        ...

    def audit_seed(self, t: int, commitment: bytes) -> int:
        """Of questions by which a neighbor is audited in round t: nobody else knows it before it
        has committed itself."""
        ...

    def knows(self, families: Sequence[str]) -> bool:
        """Are these generators, and none that is not allowed?"""
        ...

    def right(self, x: Tensor, families: Sequence[str], seed: int, count: int) -> Tensor:
        """Probabilities that x answers `count` fresh questions of generators right, float64
        [count]."""
        ...
