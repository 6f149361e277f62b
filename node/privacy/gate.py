"""The privacy gate: the only place where gradients of private examples come into being.

DPGate          (1) and (2) of DPDL for every answer, the node's own included: clip per example,
                secret Poisson batch, noise, debit on disk, and only then a `Released` gradient.
                What an algorithm does with it is post-processing. The difference of two models'
                gradients is clipped per example too: one release, one debit.
PaperGate       The papers' scheme: one batch a round for all, the own gradient clean. No guarantee.
NonPrivateGate  Plain gradients of public batches. No privacy.

One release per (recipient, round): a repeat gets the stored bytes, another question in the same
round is refused. A round in which the ledger failed stays without an answer for that recipient. A
shared batch is drawn once: where an earlier process released in a round, nothing more is. An
answer takes the time of a public number of chunks, whatever the size of its secret batch (not
covered: batches larger than privacy.largest_batch, and parts of a chunk's time that are no
gradients).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NewType

import numpy as np
import torch
from torch import Tensor

from node.config import PrivacySection
from node.hooks import NO_HOOKS, Hooks
from node.maths.backends import Choice, choose, pick
from node.maths.blocks import Block
from node.maths.chunks import Backend
from node.maths.clipping import clipped_sum, mean_gradient
from node.maths.purity import keyed_seeds
from node.maths.synthetic import random_parameters
from node.privacy import noise
from node.privacy.accountant import Mechanism
from node.privacy.block_objective import BlockObjective
from node.privacy.budget import compositions_left
from node.privacy.calibration import release_mechanism
from node.privacy.ledger import Ledger
from node.privacy.suspects import Suspects
from node.randomness import Keys, public_generator
from node.task import Objective, Task
from peer.errors import ConfigurationError, LedgerError
from peer.failpoint import failpoint
from peer.message import Peer, Withheld

Released = NewType("Released", Tensor)
"""A gradient that may leave this node, flat float32 [d]. Only this module makes one."""


class QuestionRefused(Withheld):
    """Another question in a round that has its answer, or a round that is over: the asker's fault,
    or a bug.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """One node's part of one run, as its gate has to know it."""

    privacy: PrivacySection
    me: Peer
    run: str
    """The run's id, under which the ledger has its debits."""
    rounds: int
    releases: int
    """|K| of THIS node: releases a round at most, its own included."""
    sigma: float
    """Nominal noise multiplier: `noise_multiplier`, or the paper's formula in mode paper."""
    seed: int
    """The run's public seed, of initial parameters and of the batches of mode none."""
    unit: str = ""
    """As in `[task]`, where the task's examples are persons (node/privacy/unit_task.py)."""
    full_gradient: bool = True
    """Gradients of all parameters will be asked for, not of blocks."""
    limit: float | None = None
    """The data's lifetime ε_total; None: unlimited."""
    limit_delta: float = 1e-5


@dataclass(kw_only=True, eq=False)
class GradientGate(ABC):
    """`node.algorithms.Gradients`, and what status and metrics may know of it."""

    config: GateConfig
    task: Task
    hooks: Hooks = NO_HOOKS
    choice: Choice | None = None
    """How gradients of single examples are computed; None: they are not (mode none), or block by
    block.
    """
    exhausted: bool = field(default=False, init=False)
    """A release was withheld because the budget is spent."""
    fault: str = field(default="", init=False)
    """The ledger's sentence while it fails; empty when all is well."""
    faults: int = field(default=0, init=False)
    """How often the ledger failed."""
    withheld: int = field(default=0, init=False)
    """Releases that were not made, for lack of budget or ledger; the own one counts too."""

    def __post_init__(self) -> None:
        self.me = self.config.me
        self._suspects = Suspects(self.task, self.config.seed, self.hooks.on_unusable)

    @abstractmethod
    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """The gradient at x [d] for `to` in round t, flat float32 [d]."""

    @abstractmethod
    def own(self, x: Tensor, t: int) -> Tensor:
        """The own gradient at x [d] in round t, flat float32 [d]."""

    @abstractmethod
    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        """What the own gradient at x has more than that at `before`, flat float32 [d]."""

    @abstractmethod
    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the own gradient of one block of the model x [d], flat float32 [block]."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What gradient is asked for: at x, or what it is more there than at `before`; of `task`."""

    task: Objective
    x: Tensor
    before: Tensor | None = None
    backend: Backend | None = None
    """None: the gate's choice."""

    @property
    def digest(self) -> bytes:
        return _digest(self.x) + (_digest(self.before) if self.before is not None else b"")


@dataclass(slots=True)
class _LastQuestion:
    """What a recipient asked last."""

    round: int
    question: bytes
    answer: Released | None = None
    """None while it is computed, and when it was withheld."""


@dataclass(kw_only=True, eq=False)
class DPGate(GradientGate):
    """Every release is clipped, noised and debited. See `make_gate`."""

    mechanism: Mechanism
    ledger: Ledger
    keys: Keys
    budget: int | None = None
    """Compositions that may still be spent; None: no lifetime limit."""

    _last: dict[Peer, _LastQuestion] = field(default_factory=dict)
    _without: dict[Peer, int] = field(default_factory=dict)
    """The last round in which a recipient got nothing."""
    _backends: dict[int, Backend] = field(default_factory=dict)
    """Of each block, by where it starts."""
    _batch: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
    """The round and the rows of the last shared batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._spent_at_start = self.ledger.compositions

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """g̈ at x for `to` in round t, flat float32 [d]. May be entered again, for another
        recipient, by `hooks.yield_point`.

        Raises:
            QuestionRefused: another x in the same round, or a round that is over.
            Withheld: the budget is spent or the ledger can't record the debit; for `to` = me zeros
                are returned then.
        """
        return self._zeros_if_withheld(_Question(self.task, x), t, to)

    def own(self, x: Tensor, t: int) -> Tensor:
        """Identical to `self(x, t, me)`."""
        return self(x, t, self.me)

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        """The round's release for me: (Σ_b clip_C(ĝ_b(x) − ĝ_b(before)) + z)/B with ĝ clipped
        itself, flat float32 [d].

        One example moves the sum by C at most, as in any other release, and that is what is
        debited: one of them.

        Raises:
            QuestionRefused: another release for me in the same round, or a round that is over.
            Withheld: the budget is spent or the ledger can't record the debit; zeros would say that
                nothing changed.
        """
        return self._copy_of_answer(_Question(self.task, x, before), t, self.me)

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the round's release for me, of one block: clipped over its parameters alone,
        else as any other.
        """
        backend = self._backend_of(block)
        task = BlockObjective(self.task, x, block)

        def gradient(theta: Tensor, t: int) -> Tensor:
            question = _Question(task, theta, backend=backend)
            return self._zeros_if_withheld(question, t, self.me)

        return gradient

    def _backend_of(self, block: Block) -> Backend:
        start = block.span.start
        if start not in self._backends:  # tried where the other parameters are made up as well
            made_up = BlockObjective(self.task, random_parameters(self.task.layout, 0), block)
            privacy = self.config.privacy
            self._backends[start] = pick(privacy.backend, made_up, privacy.chunk)
        return self._backends[start]

    def _zeros_if_withheld(self, question: _Question, t: int, to: Peer) -> Tensor:
        """As `_copy_of_answer`, but zeros for me where it is withheld."""
        try:
            return self._copy_of_answer(question, t, to)
        except QuestionRefused:
            raise
        except Withheld:
            if to != self.me:
                raise
            return torch.zeros(question.task.layout.size)

    def _copy_of_answer(self, question: _Question, t: int, to: Peer) -> Tensor:
        """The answer, which the caller may change; counts and reports what is withheld."""
        try:
            return self._answer(question, t, to).clone()
        except QuestionRefused:
            raise
        except Withheld as reason:
            if self._without.get(to) != t:  # asked for again, it is still one
                self._without[to] = t
                self.withheld += 1
                self.hooks.on_withheld(t, to, str(reason))
            raise

    def _answer(self, question: _Question, t: int, to: Peer) -> Released:
        last, asked = self._last_question(to), question.digest
        if t == last.round and asked == last.question:
            if last.answer is None:
                raise Withheld("the answer of this round is not there")
            return last.answer
        if t <= last.round:
            raise QuestionRefused("this round has another question's answer, or is over")
        self._check_affordable(t)
        self._last[to] = last = _LastQuestion(t, asked)
        last.answer = self._release(question, t, to)
        return last.answer

    def _last_question(self, to: Peer) -> _LastQuestion:
        """What `to` asked last, after a restart as far as the ledger knows."""
        if to not in self._last:
            with self._ledger_errors_withhold():
                self._last[to] = _LastQuestion(self.ledger.last_round(self.config.run, to), b"")
        return self._last[to]

    def _check_affordable(self, t: int) -> None:
        """Raises Withheld unless one more debit in round t is within the run and within the
        budget.
        """
        if not 0 <= t < self.config.rounds:
            raise QuestionRefused("the run has no such round")
        with self._ledger_errors_withhold():
            made = self.ledger.count(self.config.run, t)
        if made >= self.mechanism.releases:
            raise Withheld(f"this round has its {made} releases")
        paid = made > 0 and self.mechanism.batches == "shared"
        if paid and self._batch[0] < t:  # the one batch that the debit is for is gone
            raise Withheld("an earlier process released in this round, whose batch it drew")
        if self.budget is None or paid:
            return
        if self.ledger.compositions - self._spent_at_start >= self.budget:
            self.exhausted = True
            raise Withheld("the privacy budget of the data is spent")

    def _release(self, question: _Question, t: int, to: Peer) -> Released:
        total = self._clipped(question, t, to)
        failpoint("before_noise")
        privacy, stream = self.config.privacy, self.keys.stream("noise", t, to)
        answer = noise.release(total, self.config.sigma, privacy.clip, privacy.batch, stream)
        failpoint("after_noise")
        self._check_affordable(t)  # again: others were answered meanwhile
        with self._ledger_errors_withhold():
            self.ledger.debit(self.config.run, t, to, self.mechanism)
        self.fault = ""
        self.hooks.on_release(t, to)
        return Released(answer)

    def _clipped(self, question: _Question, t: int, to: Peer) -> Tensor:
        """The sum of the batch's clipped gradients, flat float64 [d]."""
        privacy = self.config.privacy
        total = clipped_sum(
            question.task,
            question.x,
            self._rows(t, to),
            privacy.clip,
            before=question.before,
            chunk=privacy.chunk,
            least=privacy.largest_batch,
            backend=question.backend or (self.choice.backend if self.choice else "loop"),
            seeds=keyed_seeds(self.keys.stream("loss", t, to).bytes(32)),
            yield_point=self.hooks.yield_point,
            on_unusable=lambda rows: self._suspects.examine(t, rows, own_model=to == self.me),
        )
        return noise.held(total, privacy.largest_sum)

    def _rows(self, t: int, to: Peer) -> Tensor:
        """The secret Poisson batch, int64 [n]: one per answer, or one a round for all."""
        if self.mechanism.batches == "independent":
            return self._draw(t, to)
        if t < self._batch[0]:
            raise QuestionRefused("this round is over")
        if t > self._batch[0]:
            self._batch = (t, self._draw(t, ""))
        return self._batch[1]

    def _draw(self, t: int, to: Peer) -> Tensor:
        uniform = self.keys.stream("batch", t, to).uniform(self.task.num_examples)
        return torch.from_numpy(np.flatnonzero(uniform < self.config.privacy.rate))

    @contextmanager
    def _ledger_errors_withhold(self) -> Iterator[None]:
        """A ledger that fails withholds the release and is remembered for status."""
        try:
            yield
        except LedgerError as error:
            self.fault = str(error)
            self.faults += 1
            raise Withheld("the privacy ledger can't record the debit") from error


@dataclass(kw_only=True, eq=False)
class PaperGate(DPGate):
    """As DPGate on one batch a round, debited as "paper" (its ε is inf), but the own gradient is
    clean.
    """

    _clean: Tensor = field(default_factory=lambda: torch.empty(0))

    def own(self, x: Tensor, t: int) -> Tensor:
        """ĝ_ii = (1/B) Σ clipped gradients, without noise; zeros where the noised release for me is
        withheld.
        """
        released, last = self(x, t, self.me), self._last.get(self.me)
        answered = last is not None and last.round == t and last.answer is not None
        return self._clean.clone() if answered else released

    def _clipped(self, question: _Question, t: int, to: Peer) -> Tensor:
        total = super()._clipped(question, t, to)
        if to == self.me:
            self._clean = (total / self.config.privacy.batch).to(torch.float32)
        return total


@dataclass(kw_only=True, eq=False)
class NonPrivateGate(GradientGate):
    """Mode none: the mean gradient over B examples drawn without replacement, publicly; one batch a
    round for all.
    """

    _own: tuple[int, bytes, Tensor] = (-1, b"", torch.empty(0))
    """Round, digest of x, and gradient: the last one for me."""

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """The plain gradient at x of round t's batch, flat float32 [d]."""
        gradient = self.own(x, t) if to == self.me else self._mean(self.task, x, t)
        return self._released(gradient, t, to)

    def own(self, x: Tensor, t: int) -> Tensor:
        """The same as for me; computed once."""
        key = (t, _digest(x))
        if self._own[:2] != key:
            self._own = (*key, self._mean(self.task, x, t))
        return self._own[2].clone()

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        """The plain gradient at x less that at `before`, both of round t's batch."""
        gained = self._mean(self.task, x, t).sub_(self._mean(self.task, before, t))
        return self._released(gained, t, self.me)

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the plain gradient of one block, of round t's batch."""
        task = BlockObjective(self.task, x, block)
        return lambda theta, t: self._released(self._mean(task, theta, t), t, self.me)

    def _released(self, gradient: Tensor, t: int, to: Peer) -> Released:
        self.hooks.on_release(t, to)
        return Released(gradient)

    def _mean(self, task: Objective, x: Tensor, t: int) -> Tensor:
        seed, me = self.config.seed, self.me
        generator = public_generator(seed, me, t, "batch")
        order = torch.randperm(self.task.num_examples, generator=generator)
        gradient = mean_gradient(
            task,
            x,
            order[: self.config.privacy.batch],
            lambda rows: self._suspects.examine(t, rows, own_model=False),
            keyed_seeds(f"{seed} {me} {t}".encode()),
        )
        self.hooks.yield_point()
        return gradient


def _digest(x: Tensor) -> bytes:
    """SHA-256 of x as float32."""
    return hashlib.sha256(x.detach().to(torch.float32).contiguous().numpy().data).digest()


def make_gate(
    config: GateConfig,
    task: Task,
    *,
    ledger: Ledger | None,
    keys: Keys,
    hooks: Hooks = NO_HOOKS,
) -> GradientGate:
    """The gate of the configured mode. In mode none a ledger, if given, is marked.

    Raises:
        ConfigurationError: a lifetime limit with a mode that can't keep one, or a backend that the
            model can't have.
        LedgerError: the mark can't be recorded, or a noised mode has no ledger.
        BudgetSpent: a new run could release nothing.
    """
    privacy = config.privacy
    if privacy.mode != "strict" and config.limit is not None:
        raise ConfigurationError(
            f'privacy.mode = "{privacy.mode}" gives no guarantee, so budget.epsilon can\'t be '
            'kept; use mode "strict", or set budget.epsilon = "unlimited".'
        )
    if privacy.mode == "none":
        if ledger is not None:
            ledger.mark(config.run, "none")
        return NonPrivateGate(config=config, task=task, hooks=hooks)
    if ledger is None:
        raise LedgerError(f'privacy.mode = "{privacy.mode}" releases nothing without a ledger.')
    mechanism = release_mechanism(
        privacy,
        d=task.layout.size,
        sigma=config.sigma,
        releases=config.releases,
        unit=config.unit,
    )
    kind = DPGate if privacy.mode == "strict" else PaperGate
    return kind(
        config=config,
        task=task,
        hooks=hooks,
        choice=choose(privacy.backend, task, privacy.chunk) if config.full_gradient else None,
        mechanism=mechanism,
        ledger=ledger,
        keys=keys,
        budget=compositions_left(
            ledger,
            mechanism,
            run=config.run,
            rounds=config.rounds,
            limit=config.limit,
            delta=config.limit_delta,
        ),
    )
