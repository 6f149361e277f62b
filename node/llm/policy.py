"""A language model as a policy (`node.maths.policy.Policy`): it answers questions, is rewarded, and
learns from its answers by GRPO.

What others say of themselves is never believed here: an answer's reward is computed from its text,
and an audit asks for the probability of the canonical answer, in one pass over question and answer.
Where a family has a scorer, so that there is no such answer, answers are drawn instead, for all
models with the same random numbers, and the scorer judges them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from node.config import ReasoningSection
from node.config.task import OWN_FAMILY
from node.data import Texts, families, questions
from node.data.families import Item, Scorer
from node.llm.forward import Forward
from node.llm.generation import Sampling, completion_log_probs, generate
from node.llm.prompts import Encoder
from node.llm.server import Server
from node.llm.tokens import StopStrings
from node.maths.grpo import (
    GrpoConfig,
    grpo_loss,
    has_spread,
    importance_weights,
    loss_mask,
    token_weights,
)
from node.maths.policy import Completions, Draws, PolicyGradient, Prompts, Rollouts
from node.randomness import public_generator
from node.task import views
from peer.errors import DataError, Diverged, TaskError
from peer.message import Layout

EVALUATED = 32
"""Questions of the fixed set by which `reward` goes."""
TOO_FEW = (
    "There are too few questions: some are to learn from, others to test by; add more, or, where a "
    "node's own kind is missing among the test questions, raise task.text.test_size."
)
SAMPLES = 8
"""Answers to a question from which the probability to be right is estimated where a scorer says
what is right."""
AT_ONCE = 64
"""Rows of a forward pass without gradients."""
PARITY: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean difference between log-probabilities of generator and trainer, by the type in which
the model computes. More means that they are not the same model."""
FAR = 1.0
"""The same of a server's, above which importance weights are mostly cut off."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions as tokens, and the right answers with their ends."""

    items: Sequence[Item]
    families: Sequence[str]
    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Sequence[int]) -> Asked:
        """These questions."""
        return Asked(
            [self.items[row] for row in rows],
            [self.families[row] for row in rows],
            [self.prompts[row] for row in rows],
            [self.answers[row] for row in rows],
        )


class LanguagePolicy:
    """One node's policy."""

    def __init__(
        self,
        forward: Callable[[Mapping[str, Tensor]], Forward],
        layout: Layout,
        encoder: Encoder,
        section: ReasoningSection,
        rows: Texts,
        held_out: Texts,
        draws: Draws,
        *,
        generators: Sequence[str] = (),
        scorer: Scorer | None = None,
        longest: int = GrpoConfig().max_completion_length,
        dtype: torch.dtype = torch.float32,
        micro_batch: int | None = None,
    ) -> None:
        """`forward` gives the model with these parameters; `rows` are trained on, `held_out` are
        not. `generators`: of which families of the run others can make questions. `scorer`: of
        questions of a file. `longest`: tokens of an answer that is drawn to estimate a probability.

        Raises:
            DataError: there are too few rows.
        """
        self._forward, self._layout, self._encoder = forward, layout, encoder
        self._section, self._draws = section, draws
        self._stop = StopStrings(section.stop, encoder.tokens) if section.stop else None
        self._parity, self._micro_batch = PARITY[dtype], micro_batch
        self._generators, self._longest = frozenset(generators), longest
        scorers = {name: questions.find(name).scores for name in sorted(self._generators)}
        self._scorers = {name: each for name, each in scorers.items() if each is not None}
        self._scorer = scorer
        self._train, tested = self.asked(rows), self.asked(held_out)
        own = sorted(set(self._train.families))
        self.families = tuple(name for name in own if name in self._generators)
        alike = [k for k, name in enumerate(tested.families) if name in own]
        self._fixed = tested.take(spread(alike, EVALUATED))
        if not (len(self._train) and len(self._fixed)):
            raise DataError(TOO_FEW)
        self.evaluation = hashlib.sha256(json.dumps(self._fixed.prompts).encode()).digest()
        self.questions, self.tokens_read = len(self._train), 0
        self.scorer_failures = 0
        self.vocabulary = encoder.tokens.size
        self._server = Server(draws.generator, encoder.tokens) if draws.generator else None
        self._warned = False
        self._nonce = (-1, b"")

    def asked(self, rows: Texts) -> Asked:
        """Rows of questions and answers as tokens."""
        prompts, answers = zip(*self._encoder.pairs(rows), strict=True)
        return Asked(items_of(rows, self._encoder), family_of(rows), prompts, answers)

    def _scorer_of(self, family: str) -> Scorer | None:
        """None: there is one right answer."""
        return self._scorers.get(family, self._scorer)

    def sampling(self, config: GrpoConfig, temperature: float | None = None) -> Sampling:
        """How answers are drawn; temperature 0 takes the likeliest tokens."""
        tokens = self._encoder.tokens
        banned = {tokens.pad, *tokens.begin} - {tokens.end}
        return Sampling(
            max_completion_length=config.max_completion_length,
            end=tokens.end,
            pad=tokens.pad,
            banned=tuple(sorted(banned)),
            temperature=config.temperature if temperature is None else temperature,
            top_p=config.top_p,
            stop=self._stop,
        )

    def rollouts(self, x: Tensor, config: GrpoConfig, t: int, step: int) -> Rollouts:
        generator = public_generator(self._draws.seed, self._draws.me, t, f"rollouts {step}")
        rows = torch.randperm(len(self._train), generator=generator)[: config.questions]
        asked = self._train.take(
            [int(row) for row in rows.repeat_interleave(config.num_generations)]
        )
        clock = time.monotonic if self._server else time.thread_time
        since, yield_point = clock(), self._draws.yield_point
        prompts = Prompts.of(asked.prompts, self._encoder.tokens.pad)
        sampling, count = self.sampling(config), config.num_generations
        if self._server:
            own = asked.prompts[::count]
            completions = self._server.answers(own, count, sampling, generator, yield_point)
        else:
            completions = generate(self._at(x), prompts, sampling, generator, yield_point)
        scores = self._scores(asked, completions)
        return Rollouts(
            prompts=prompts,
            completions=completions,
            rewards=self._rewards(asked, scores),
            exact=_right(scores),
            seconds=clock() - since,
        )

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
        since, sampling = time.thread_time(), self.sampling(config)
        served = on_policy and self._server is not None
        cap = config.importance_sampling_cap if served else None
        completions = rollouts.completions
        mask = loss_mask(completions.mask, completions.ended, config)
        weights = token_weights(mask, config, config.max_completion_length)
        gradient = torch.zeros_like(x)
        leaves = views(self._layout, x.detach())
        # Each has its part of the gradient: backward to slices of x would make a vector for each.
        for name, part in views(self._layout, gradient).items():
            leaves[name].requires_grad_().grad = part
        forward = self._forward(leaves)
        # Without KL, answers without an advantage weigh in the denominator only.
        learned = mask.any(1) if config.beta else mask.any(1) & (advantages != 0)
        rows = learned.nonzero()[:, 0]
        sums: dict[str, float] = defaultdict(float)
        for part in torch.split(rows, self._micro_batch or len(advantages)) if len(rows) else ():
            prompts, drawn = rollouts.prompts.rows(part), completions.rows(part)
            log_probs = completion_log_probs(forward, prompts, drawn, sampling)
            now, counts = log_probs.detach(), drawn.mask.bool()
            terms = grpo_loss(
                log_probs,
                now if on_policy else drawn.log_probs,
                advantages[part],
                weights[part],
                config,
                reference=self._log_probs(reference, prompts, drawn, sampling),
                correction=cap if cap is None else importance_weights(now, drawn.log_probs, cap),
            )
            torch.autograd.backward(terms.loss)
            sums["tokens"] += terms.tokens
            sums["low"] += terms.clipped_low
            sums["high"] += terms.clipped_high
            sums["kl"] += terms.kl
            sums["nll"] -= float(now[counts].sum())
            sums["apart"] += float((now - drawn.log_probs)[counts].abs().sum())
            self._draws.yield_point()
        if on_policy and not len(rows):
            sums.update(self._compared(x, rollouts, config, sampling))
        mean = {name: total / max(sums["tokens"], 1) for name, total in sums.items()}
        if math.isnan(apart := mean.get("apart", 0.0)):
            raise Diverged("its model's log-probabilities are no numbers (NaN)")
        if served:
            self._compare_server(apart)
        elif on_policy and apart > self._parity:
            raise TaskError(
                "The model that answers is not the one that is trained: their log-probabilities "
                f"differ by {apart:.2g} a token; it may have changed while it answered."
            )
        return PolicyGradient(
            gradient=gradient if len(rows) else None,
            entropy=mean.get("nll", 0.0),
            clip_low=mean.get("low", 0.0),
            clip_high=mean.get("high", 0.0),
            kl=mean.get("kl", 0.0),
            zero_spread=1 - float(has_spread(rollouts.rewards, config).double().mean()),
            mismatch=apart,
            seconds=time.thread_time() - since,
        )

    def _compared(
        self, x: Tensor, rollouts: Rollouts, config: GrpoConfig, sampling: Sampling
    ) -> dict[str, float]:
        """Where nothing is learned: sums over the answers to the first question. Whoever answers
        must be the one who would have been trained."""
        some = torch.arange(config.num_generations)
        drawn = rollouts.completions.rows(some)
        now = self._log_probs(x, rollouts.prompts.rows(some), drawn, sampling)
        assert now is not None
        counts = drawn.mask.bool()
        apart = (now - drawn.log_probs)[counts].abs().sum()
        nll = -now[counts].sum()
        return {"tokens": float(counts.sum()), "apart": float(apart), "nll": float(nll)}

    def _compare_server(self, apart: float) -> None:
        """Warns, once, of a server whose model is far from the one that is trained."""
        if apart > FAR and not self._warned:
            self._warned = True
            self._draws.warn(
                f"The generation server's model is far from the one that is trained: their "
                f"log-probabilities differ by {apart:.2g} a token, so little is learned from its "
                "answers; let it load what peerpoise export writes."
            )

    def _log_probs(
        self, x: Tensor | None, prompts: Prompts, drawn: Completions, sampling: Sampling
    ) -> Tensor | None:
        """Of the answers under other parameters, [n, T]."""
        if x is None:
            return None
        with torch.no_grad():
            return completion_log_probs(self._at(x), prompts, drawn, sampling)

    def reward(self, x: Tensor) -> float:
        scales = [self._section.scale(name) for name in self._fixed.families]
        factor, offset = torch.tensor(scales, dtype=torch.float64).T
        return float((factor * self.expected(x, self._fixed) + offset).mean())

    def fixed(self, x: Tensor) -> Tensor:
        return self.expected(x, self._fixed)

    def audit_seed(self, t: int, commitment: bytes) -> int:
        if self._nonce[0] != t:
            self._nonce = (t, self._draws.keys.stream("audit", t, self._draws.me).bytes(32))
        place = hashlib.sha256(self._nonce[1] + t.to_bytes(8, "big") + commitment).digest()
        return int.from_bytes(place[:7], "big")

    def knows(self, names: Sequence[str]) -> bool:
        return bool(names) and len(set(names)) == len(names) and self._generators >= {*names}

    def right(self, x: Tensor, names: Sequence[str], seed: int, count: int) -> Tensor:
        chosen = [names[k % len(names)] for k in range(count)]
        items = questions.items(chosen, range(seed, seed + count))
        return self.expected(x, self.asked(questions.texts(items, chosen)), seed)

    def expected(self, x: Tensor, asked: Asked, seed: int = 0) -> Tensor:
        """Probabilities to answer right, float64 [n]: of the right answer, or, where a scorer says
        what is right, the share of right ones among SAMPLES answers. Models that are asked with the
        same seed are coupled."""
        judged = [k for k, name in enumerate(asked.families) if self._scorer_of(name)]
        if not judged:
            return self.probabilities(x, asked)
        p = torch.zeros(len(asked), dtype=torch.float64)
        p[judged] = self._sampled(x, asked.take(judged), seed)
        if others := sorted({*range(len(asked))} - {*judged}):
            p[others] = self.probabilities(x, asked.take(others))
        return p

    def _sampled(self, x: Tensor, asked: Asked, seed: int) -> Tensor:
        """Shares of right answers, float64 [n]."""
        sampling = self.sampling(GrpoConfig(max_completion_length=self._longest))
        repeated = asked.take([row for row in range(len(asked)) for _ in range(SAMPLES)])
        right = self._answered(x, repeated, sampling, torch.Generator().manual_seed(seed))
        return right.view(-1, SAMPLES).double().mean(1)

    def probabilities(self, x: Tensor, asked: Asked) -> Tensor:
        """Of the right answers with their ends, float64 [n]."""
        self.tokens_read += sum(map(len, (*asked.prompts, *asked.answers)))
        forward, sampling = self._at(x), self.sampling(GrpoConfig())
        parts = []
        for start in range(0, len(asked), AT_ONCE):
            some = asked.take(range(start, min(start + AT_ONCE, len(asked))))
            prompts = Prompts.of(some.prompts, sampling.pad)
            answers = _padded(some.answers, sampling.pad)
            with torch.no_grad():
                log_probs = completion_log_probs(forward, prompts, answers, sampling)
            parts.append((log_probs.double() * answers.mask).sum(1).exp())
            self._draws.yield_point()
        return torch.cat(parts)

    def greedy(self, x: Tensor, asked: Asked, config: GrpoConfig) -> Tensor:
        """Whether the likeliest answers are right, bool [n]."""
        return self._answered(x, asked, self.sampling(config, 0.0), torch.Generator())

    def _answered(
        self, x: Tensor, asked: Asked, sampling: Sampling, generator: torch.Generator
    ) -> Tensor:
        """Whether answers that are drawn are right, bool [n]."""
        parts = []
        for start in range(0, len(asked), AT_ONCE):
            some = asked.take(range(start, min(start + AT_ONCE, len(asked))))
            prompts = Prompts.of(some.prompts, sampling.pad)
            drawn = generate(self._at(x), prompts, sampling, generator, self._draws.yield_point)
            self.tokens_read += int(prompts.mask.sum() + drawn.mask.sum())
            parts.append(_right(self._scores(some, drawn)))
        return torch.cat(parts)

    def texts(self, completions: Completions) -> list[str]:
        """The answers, without their ends."""
        tokens = self._encoder.tokens
        spoken = completions.mask.bool() & (completions.ids != tokens.end)
        rows = zip(completions.ids, spoken, strict=True)
        texts = [tokens.decode(ids[kept].tolist()) for ids, kept in rows]
        return [*map(self._stop.before, texts)] if self._stop else texts

    def _scores(self, asked: Asked, completions: Completions) -> list[float]:
        """What the answers are worth, 0 … 1, where 1 is right; one that was cut off is worth
        nothing."""
        texts, scores = self.texts(completions), [0.0] * len(asked)
        ended = completions.ended.nonzero()[:, 0].tolist()
        for name in sorted({asked.families[row] for row in ended}):
            rows = [row for row in ended if asked.families[row] == name]
            items, answers = [asked.items[row] for row in rows], [texts[row] for row in rows]
            for row, score in zip(rows, self._judged(name, items, answers), strict=True):
                scores[row] = score
        return scores

    def _judged(self, family: str, items: Sequence[Item], answers: Sequence[str]) -> list[float]:
        """Scores of answers to questions of a family."""
        scorer = self._scorer_of(family)
        if scorer is None:
            match = self._section.match
            return [families.score(*pair, match) for pair in zip(items, answers, strict=True)]
        scores = scorer(items, answers, self._draws.yield_point)
        self.scorer_failures += scores.count(None)
        return [score or 0.0 for score in scores]

    def _rewards(self, asked: Asked, scores: Sequence[float]) -> Tensor:
        """What answers with such scores earn, float32 [n], on their families' scales."""
        rewards = []
        for name, score in zip(asked.families, scores, strict=True):
            factor, offset = self._section.scale(name)
            rewards.append(factor * score + offset)
        return torch.tensor(rewards)

    def _at(self, x: Tensor) -> Forward:
        return self._forward(views(self._layout, x.detach()))


def _right(scores: Sequence[float]) -> Tensor:
    """Which answers are right, bool [n]."""
    return torch.tensor(scores, dtype=torch.float64) == 1


def divided(rows: Texts, encoder: Encoder) -> tuple[Texts, Texts]:
    """Rows to learn from, and to test by: which, the question decides.

    Raises:
        DataError: there are too few.
    """
    held_out = np.array([Item(text.strip(), "").held_out for text in encoder.prompts(rows)])
    if held_out.all() or not held_out.any():
        raise DataError(TOO_FEW)
    return rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))


def items_of(rows: Texts, encoder: Encoder) -> list[Item]:
    """Rows as questions with their right answers."""
    asked = rows.columns.get("question", [text.strip() for text in encoder.prompts(rows)])
    pairs = zip(asked, rows.columns[encoder.text.answer], strict=True)
    return [Item(str(question), str(answer)) for question, answer in pairs]


def family_of(rows: Texts) -> list[str]:
    """Of every row."""
    column = rows.columns.get("family")
    return [OWN_FAMILY] * len(rows) if column is None else [str(name) for name in column]


def spread(rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, at equal distances."""
    count = min(most, len(rows))
    return [rows[k * len(rows) // count] for k in range(count)]


def _padded(answers: Sequence[Sequence[int]], pad: int) -> Completions:
    """Answers as if they had been drawn."""
    longest = max(map(len, answers))
    ids = torch.tensor([[*answer, *[pad] * (longest - len(answer))] for answer in answers])
    mask = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
    return Completions(
        ids, mask, torch.zeros(ids.shape), torch.ones(len(answers), dtype=torch.bool)
    )
