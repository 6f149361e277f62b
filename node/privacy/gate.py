"""The gate at the data: the only place where gradients of private examples come into being.

DPGate   (1) and (2) of DPDL for every answer, the own one included: clip per example, secret Poisson batch, noise,
             debit on disk, and only then a `Released` gradient. What an algorithm does with it is
             post-processing. The difference of two models' gradients is clipped per example too:
             one release, one debit.
PaperGate    the papers' scheme: one batch a round for all, the own gradient clean. No guarantee.
NonPrivateGate    plain gradients of public batches. No privacy.

One release per (recipient, round): a repeat gets the stored bytes, another question in the same
round is refused. A round in which the ledger failed stays without an answer for that recipient. An
answer takes the time of a public number of chunks, whatever the size of its secret batch (not
covered: batches larger than privacy.largest_batch, and parts of a chunk's time that are no
gradients).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NewType, Protocol

import numpy as np
import torch
from torch import Tensor

from node.config import PrivacySection
from node.maths.blocks import Block
from node.maths.clipping import Backend, Choice, choose, clipped_sum, mean_gradient, pick, unusable
from node.maths.purity import keyed_seeds
from node.maths.synthetic import random_parameters
from node.privacy import noise
from node.privacy.accountant import Mechanism, calibrate, remaining_compositions
from node.privacy.block_objective import BlockObjective
from node.privacy.ledger import Ledger
from node.randomness import Keys, public_generator
from node.task import Task
from peer.errors import ConfigurationError, LedgerError
from peer.failpoint import failpoint
from peer.message import Peer, Withheld

Released = NewType("Released", Tensor)
"""A gradient that may leave this node, flat float32 [d]. Only this module makes one."""


class QuestionRefused(Withheld):
    """Another question in a round that has its answer, or a round that is over: the asker's fault,
    or a bug.
    """


class GradientGate(Protocol):
    """`node.algorithms.Gradients`, and what status and metrics may know of it."""

    exhausted: bool = False
    """A release was withheld because the budget is spent."""
    fault: str = ""
    """The ledger's sentence while it fails; empty when all is well."""
    faults: int = 0
    """How often the ledger failed."""
    withheld: int = 0
    """Releases that were not made, for lack of budget or ledger; the own one counts too."""
    choice: Choice | None = None
    """How gradients of single examples are computed; None: they are not (mode none), or block by
    block.
    """

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor: ...

    def own(self, x: Tensor, t: int) -> Tensor: ...

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor: ...

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]: ...


def _nothing() -> None:
    pass


def _nobody(t: int, recipient: Peer, why: str = "") -> None:
    pass


def _unread(t: int, rows: Tensor) -> None:
    pass


LOOKED_AT = 64
"""Suspect records that are looked at in one release: each costs a gradient."""


@dataclass(slots=True)
class _Suspects:
    """Records whose gradients were not finite, perhaps because of a neighbor's model: each is
    looked at once.
    """

    task: Task
    start: Callable[[], Tensor] | None
    """Gives the run's initial parameters."""
    tell: Callable[[int, Tensor], None]
    told: set[int] = field(default_factory=set)
    cleared: set[int] = field(default_factory=set)
    """Looked at: a neighbor's model was to blame."""

    def __call__(self, t: int, rows: Tensor, *, own: bool) -> None:
        """`own`: they were met at this node's own model; else they have to fail at the start, and
        at made-up parameters, too."""
        known = self.told if own else self.told | self.cleared
        new = torch.tensor(
            [row for row in rows.tolist() if row not in known][:LOOKED_AT], dtype=torch.int64
        )
        bad = new
        if not own and len(bad):
            bad = unusable(self.task, bad, random_parameters(self.task.layout, 0))
        if not own and len(bad) and self.start is not None:
            bad = unusable(self.task, bad, self.start())
        self.told |= set(bad.tolist())
        self.cleared |= set(new.tolist()) - self.told
        if len(bad):
            self.tell(t, bad)


@dataclass(frozen=True, slots=True)
class _Question:
    """What gradient is asked for: at x, or what it is more there than at `before`; of `task`."""

    task: Task
    x: Tensor
    before: Tensor | None = None
    backend: Backend | None = None
    """None: the gate's choice."""

    @property
    def digest(self) -> bytes:
        return _digest(self.x) + (_digest(self.before) if self.before is not None else b"")


@dataclass(slots=True)
class _Last:
    """The last question of a recipient. `answer` is None while it is computed and when it was
    withheld.
    """

    round: int
    question: bytes
    answer: Released | None = None


@dataclass(kw_only=True, eq=False)
class DPGate(GradientGate):
    """Every release is clipped, noised and debited. See `make_gate` for the fields."""

    config: PrivacySection
    task: Task
    me: Peer
    run: str
    rounds: int
    sigma: float
    mechanism: Mechanism
    ledger: Ledger
    keys: Keys
    choice: Choice | None
    budget: int | None = None
    """Units that may still be spent; None: no lifetime limit."""
    yield_point: Callable[[], None] = _nothing
    on_release: Callable[[int, Peer], None] = _nobody
    on_withheld: Callable[[int, Peer, str], None] = _nobody
    on_unusable: Callable[[int, Tensor], None] = _unread
    start: Callable[[], Tensor] | None = None
    """Gives the run's initial parameters."""

    _last: dict[Peer, _Last] = field(default_factory=dict)
    _without: dict[Peer, int] = field(default_factory=dict)
    """The last round in which a recipient got nothing."""
    _backends: dict[int, Backend] = field(default_factory=dict)
    """Of each block, by its place."""
    _batch: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        self._spent_at_start = self.ledger.compositions
        self._suspects = _Suspects(self.task, self.start, self.on_unusable)

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """g̈ at x for `to` in round t, flat float32 [d]. May be entered again, for another
        recipient, by `yield_point`.

        Raises:
            QuestionRefused: another x in the same round, or a round that is over. Withheld: the
            budget is spent or the ledger can't record the debit; for `to` = me zeros are returned
            then.
        """
        return self._served(_Question(self.task, x), t, to)

    def own(self, x: Tensor, t: int) -> Tensor:
        """Own gradient: identical to `self(x, t, me)`. Flat float32 [d]."""
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
        return self._copied(_Question(self.task, x, before), t, self.me)

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the round's release for me, of one block: clipped over its parameters alone,
        else as any other.
        """
        if (
            block.span.start not in self._backends
        ):  # tried where the other parameters are made up as well
            made_up = BlockObjective(self.task, random_parameters(self.task.layout, 0), block)
            self._backends[block.span.start] = pick(self.config.backend, made_up, self.config.chunk)
        task, backend = BlockObjective(self.task, x, block), self._backends[block.span.start]
        return lambda theta, t: self._served(_Question(task, theta, backend=backend), t, self.me)

    def _served(self, question: _Question, t: int, to: Peer) -> Tensor:
        """As `_copied`, but zeros for me where it is withheld."""
        try:
            return self._copied(question, t, to)
        except QuestionRefused:
            raise
        except Withheld:
            if to != self.me:
                raise
            return torch.zeros(question.task.layout.size)

    def _copied(self, question: _Question, t: int, to: Peer) -> Tensor:
        """A copy of the answer; a withheld one is counted and reported."""
        try:
            return self._answer(question, t, to).clone()
        except QuestionRefused:
            raise
        except Withheld as reason:
            if self._without.get(to) != t:  # asked for again, it is still one
                self._without[to] = t
                self.withheld += 1
                self.on_withheld(t, to, str(reason))
            raise

    def _answer(self, question: _Question, t: int, to: Peer) -> Released:
        last, asked = self._previous(to), question.digest
        if t == last.round and asked == last.question:
            if last.answer is None:
                raise Withheld("the answer of this round is not there")
            return last.answer
        if t <= last.round:
            raise QuestionRefused("this round has another question's answer, or is over")
        self._check(t)
        self._last[to] = last = _Last(t, asked)
        last.answer = self._release(question, t, to)
        return last.answer

    def _previous(self, to: Peer) -> _Last:
        """What `to` asked last, after a restart as far as the ledger knows."""
        if to not in self._last:
            with self._ledger_errors_withhold():
                self._last[to] = _Last(self.ledger.last_round(self.run, to), b"")
        return self._last[to]

    def _check(self, t: int) -> None:
        """Raises Withheld unless one more debit in round t is within the run and within the
        budget.
        """
        if not 0 <= t < self.rounds:
            raise QuestionRefused("the run has no such round")
        with self._ledger_errors_withhold():
            made = self.ledger.count(self.run, t)
        if made >= self.mechanism.releases:
            raise Withheld(f"this round has its {made} releases")
        paid = made > 0 and self.mechanism.batches == "shared"
        if (
            self.budget is not None
            and not paid
            and self.ledger.compositions - self._spent_at_start >= self.budget
        ):
            self.exhausted = True
            raise Withheld("the privacy budget of the data is spent")

    def _release(self, question: _Question, t: int, to: Peer) -> Released:
        total = self._clipped(question, t, to)
        failpoint("before_noise")
        stream = self.keys.stream("noise", t, to)
        answer = noise.release(total, self.sigma, self.config.clip, self.config.batch, stream)
        failpoint("after_noise")
        self._check(t)
        with self._ledger_errors_withhold():
            self.ledger.debit(self.run, t, to, self.mechanism)
        self.fault = ""
        self.on_release(t, to)
        return Released(answer)

    def _clipped(self, question: _Question, t: int, to: Peer) -> Tensor:
        total = clipped_sum(
            question.task,
            question.x,
            self._rows(t, to),
            self.config.clip,
            before=question.before,
            chunk=self.config.chunk,
            least=self.config.largest_batch,
            backend=question.backend or (self.choice.backend if self.choice else "loop"),
            seeds=keyed_seeds(self.keys.stream("loss", t, to).bytes(32)),
            yield_point=self.yield_point,
            on_unusable=lambda rows: self._suspects(t, rows, own=to == self.me),
        )
        return noise.held(total, self.config.largest_sum)

    def _rows(self, t: int, to: Peer) -> Tensor:
        """The secret Poisson batch: one per answer, or one a round for all."""
        if self.mechanism.batches == "independent":
            return self._draw(t, to)
        if t < self._batch[0]:
            raise QuestionRefused("this round is over")
        if t > self._batch[0]:
            self._batch = (t, self._draw(t, ""))
        return self._batch[1]

    def _draw(self, t: int, to: Peer) -> Tensor:
        uniform = self.keys.stream("batch", t, to).uniform(self.task.num_examples)
        return torch.from_numpy(np.flatnonzero(uniform < self.config.rate))

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
        released = self(x, t, self.me)
        return self._clean.clone() if self._last[self.me].answer is not None else released

    def _clipped(self, question: _Question, t: int, to: Peer) -> Tensor:
        total = super()._clipped(question, t, to)
        if to == self.me:
            self._clean = (total / self.config.batch).to(torch.float32)
        return total


@dataclass(kw_only=True, eq=False)
class NonPrivateGate(GradientGate):
    """Mode none: the mean gradient over B examples drawn without replacement, publicly; one batch a
    round for all.
    """

    task: Task
    me: Peer
    batch: int
    seed: int
    yield_point: Callable[[], None] = _nothing
    on_release: Callable[[int, Peer], None] = _nobody
    on_withheld: Callable[[int, Peer, str], None] = _nobody
    on_unusable: Callable[[int, Tensor], None] = _unread
    start: Callable[[], Tensor] | None = None
    """Gives the run's initial parameters."""

    _own: tuple[int, bytes, Tensor] = (-1, b"", torch.empty(0))

    def __post_init__(self) -> None:
        self._suspects = _Suspects(self.task, self.start, self.on_unusable)

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        """The plain gradient at x of round t's batch, flat float32 [d]."""
        gradient = self.own(x, t) if to == self.me else self._mean(x, t)
        self.on_release(t, to)
        return Released(gradient)

    def own(self, x: Tensor, t: int) -> Tensor:
        """The same as for me; computed once."""
        key = (t, _digest(x))
        if self._own[:2] != key:
            self._own = (*key, self._mean(x, t))
        return self._own[2].clone()

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        """The plain gradient at x less that at `before`, both of round t's batch."""
        gained = self._mean(x, t).sub_(self._mean(before, t))
        self.on_release(t, self.me)
        return Released(gained)

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        """(θ, t) -> the plain gradient of one block, of round t's batch."""
        task = BlockObjective(self.task, x, block)

        def gradient(theta: Tensor, t: int) -> Tensor:
            found = self._mean(theta, t, task)
            self.on_release(t, self.me)
            return Released(found)

        return gradient

    def _mean(self, x: Tensor, t: int, task: Task | None = None) -> Tensor:
        draw = torch.randperm(
            self.task.num_examples, generator=public_generator(self.seed, self.me, t, "batch")
        )
        gradient = mean_gradient(
            task or self.task,
            x,
            draw[: self.batch],
            lambda rows: self._suspects(t, rows, own=False),
            keyed_seeds(f"{self.seed} {self.me} {t}".encode()),
        )
        self.yield_point()
        return gradient


def _digest(x: Tensor) -> bytes:
    """SHA-256 of x as float32."""
    return hashlib.sha256(x.detach().to(torch.float32).contiguous().numpy().data).digest()


def noise_multiplier(config: PrivacySection, *, d: int, rounds: int, releases: int) -> float:
    """The nominal σ of a strict run: `config.sigma`, or calibrated so that ε_total ≤
    `config.epsilon`.

    `releases` is |K| of the largest closed neighborhood, d the number of parameters. Takes a CPU
    second or two.

    Raises:
        ConfigurationError: no noise reaches the target.
    """
    if config.epsilon is None:
        return config.sigma or 0.0
    goal = calibrate(
        config.epsilon,
        config.delta,
        rate=config.rate,
        rounds=rounds,
        releases=releases,
        batches=config.batches,
    )
    return noise.nominal(goal, d)


def mechanism(config: PrivacySection, *, d: int, sigma: float, releases: int) -> Mechanism:
    """What the accountant and the ledger record for answers with the nominal σ."""
    if config.mode == "none":
        return Mechanism(sigma=0.0, rate=1.0, mode="none")
    batches = "shared" if config.mode == "paper" else config.batches
    effective = noise.effective(sigma, d)
    return Mechanism(
        sigma=effective, rate=config.rate, batches=batches, releases=releases, mode=config.mode
    )


def make_gate(
    config: PrivacySection,
    task: Task,
    *,
    me: Peer,
    run: str,
    rounds: int,
    releases: int,
    sigma: float,
    seed: int,
    ledger: Ledger | None,
    keys: Keys,
    whole: bool = True,
    limit: float | None = None,
    limit_delta: float = 1e-5,
    yield_point: Callable[[], None] = _nothing,
    on_release: Callable[[int, Peer], None] = _nobody,
    on_withheld: Callable[[int, Peer, str], None] = _nobody,
    on_unusable: Callable[[int, Tensor], None] = _unread,
    start: Callable[[], Tensor] | None = None,
) -> GradientGate:
    """The gate of the configured mode.

    `releases` is |K| of THIS node, its own release included; `sigma` the nominal multiplier
    (`noise_multiplier`, or the paper's formula in mode paper); `seed` draws the public batches of
    mode none; `whole`: gradients of all parameters will be asked for, not of blocks; `limit` is the
    data's lifetime ε_total at `limit_delta`. In mode none a ledger, if given, is marked.
    `yield_point` is called between chunks, `on_release(round, recipient)` after each debit,
    `on_withheld(round, recipient, why)` where nothing is released, `on_unusable(round, row
    numbers)` where gradients of records are not finite, whatever the model: that is for the data's
    owner alone; `start`, which gives the initial parameters, helps to tell such records from a
    neighbor's model that is to blame.

    Raises:
        ConfigurationError: a lifetime limit with a mode that can't keep one, or a backend that the
        model can't have. LedgerError: the mark can't be recorded, or a noised mode has no ledger.
    """
    if config.mode != "strict" and limit is not None:
        raise ConfigurationError(
            f'privacy.mode = "{config.mode}" gives no guarantee, so budget.epsilon can\'t be kept; use mode "strict", '
            'or set budget.epsilon = "unlimited".'
        )
    if config.mode == "none":
        if ledger is not None:
            ledger.mark(run, "none")
        return NonPrivateGate(
            task=task,
            me=me,
            batch=config.batch,
            seed=seed,
            yield_point=yield_point,
            on_release=on_release,
            on_unusable=on_unusable,
            start=start,
        )
    if ledger is None:
        raise LedgerError(f'privacy.mode = "{config.mode}" releases nothing without a ledger.')
    told = mechanism(config, d=task.layout.size, sigma=sigma, releases=releases)
    budget = None
    if limit is not None:
        budget = remaining_compositions(
            ledger.rows(), told, limit, limit_delta, most=told.compositions(rounds)
        )
    kind = DPGate if config.mode == "strict" else PaperGate
    return kind(
        config=config,
        task=task,
        me=me,
        run=run,
        rounds=rounds,
        sigma=sigma,
        mechanism=told,
        ledger=ledger,
        keys=keys,
        choice=choose(config.backend, task, config.chunk) if whole else None,
        budget=budget,
        yield_point=yield_point,
        on_release=on_release,
        on_withheld=on_withheld,
        on_unusable=on_unusable,
        start=start,
    )
