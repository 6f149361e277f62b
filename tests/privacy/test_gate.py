"""The privacy gate: what leaves is clipped, noised, debited, and leaves once.

Each defense is missed when off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kit.small_task import Small, gate, make_small
from node.config import PrivacySection
from node.maths import clipping, ghost, materialized
from node.maths.clipping import clipped_sum
from node.privacy import gate as gate_module
from node.privacy import noise
from node.privacy.accountant import Spent, epsilon_pld
from node.privacy.calibration import noise_multiplier, release_mechanism
from node.privacy.gate import DPGate, GradientGate, NonPrivateGate, PaperGate, QuestionRefused
from node.privacy.ledger import Ledger
from node.randomness import Keys, Stream
from node.task import views
from peer import failpoint
from peer.errors import BudgetSpent, ConfigurationError, LedgerError
from peer.message import Withheld

NAN = float("nan")


def test_a_release_is_debited_and_repeated_byte_for_byte(task: Small, ledger: Ledger) -> None:
    releases: list[tuple[int, str]] = []
    strict = gate(task, ledger, on_release=lambda *what: releases.append(what))
    x = task.initial_parameters(0)
    first = strict(x, 0, "b")
    first_bytes = first.numpy().tobytes()
    first.zero_()  # what the caller does with its copy does not matter
    assert strict(x.clone(), 0, "b").numpy().tobytes() == first_bytes
    assert strict(x, 0, "c").numpy().tobytes() != first_bytes
    assert strict.own(x, 0).equal(strict(x, 0, "a"))
    assert releases == [(0, "b"), (0, "c"), (0, "a")]
    assert ledger.compositions == 3


def test_another_question_or_an_older_round_is_refused(task: Small, ledger: Ledger) -> None:
    strict = gate(task, ledger)
    x = task.initial_parameters(0)
    strict(x, 4, "b")
    for other, round in ((x + 1, 4), (x, 3), (x, -1), (x, 10), (x, 11)):
        with pytest.raises(QuestionRefused):
            strict(other, round, "b")
    assert ledger.compositions == 1


def test_no_more_answers_a_round_than_accounted(task: Small, ledger: Ledger) -> None:
    strict = gate(task, ledger, releases=3)
    for recipient in "abc":
        strict(task.initial_parameters(0), 0, recipient)
    with pytest.raises(Withheld):
        strict(task.initial_parameters(0), 0, "d")


def test_a_restarted_gate_answers_no_round_again(task: Small, ledger: Ledger) -> None:
    x = task.initial_parameters(0)
    gate(task, ledger)(x, 3, "b")
    again = gate(task, ledger)
    for question in (x, x + 1):
        with pytest.raises(QuestionRefused):
            again(question, 3, "b")
    again(x, 4, "b")
    assert ledger.compositions == 2


QUESTIONS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(-1, 4), st.integers(0, 1), st.booleans()),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(QUESTIONS, st.sampled_from(["independent", "shared"]))
def test_one_release_per_recipient_and_round_whatever_is_asked(
    questions: list[Any], batches: str
) -> None:
    task = make_small()
    seen: dict[tuple[str, int], set[bytes]] = {}
    with Ledger.in_memory() as ledger:
        strict = gate(task, ledger, rounds=4, releases=3, config_batches=batches)
        for to, round, model, disk_fails in questions:
            if disk_fails:
                failpoint._ARMED["after_ledger_append"] = failpoint._Armed("eio", 1)
            try:
                answer = strict(task.initial_parameters(0) + model, round, to)
                if answer.any():  # zeros: withheld from me
                    seen.setdefault((to, round), set()).add(answer.numpy().tobytes())
            except Withheld:
                pass
            finally:
                failpoint._ARMED.clear()
        assert all(len(answers) == 1 for answers in seen.values())
        assert all(0 <= round < 4 for _, round in seen)
        assert max((sum(r == round for _, r in seen) for round in range(4)), default=0) <= 3
        assert ledger.head[0] == len(seen)


def test_answers_may_be_asked_for_while_another_is_computed(task: Small, ledger: Ledger) -> None:
    inner: dict[str, Tensor] = {}
    pending = ["c", "a"]

    def yield_point() -> None:
        if pending:
            to = pending.pop()
            inner[to] = strict(x, 0, to)
        with pytest.raises(Withheld):
            strict(x, 0, "b")  # is being computed

    strict = gate(task, ledger, yield_point=yield_point, config_chunk=8)
    x = task.initial_parameters(0)
    outer = strict(x, 0, "b")
    assert ledger.compositions == 3
    alone = gate(task, Ledger.in_memory())
    assert alone(x, 0, "b").equal(outer)
    assert all(alone(x, 0, to).equal(answer) for to, answer in inner.items())


# -- differences -----------------------------------------------------------------------------------


def test_a_difference_is_one_release_for_me_debited_and_repeated_byte_for_byte(
    task: Small, ledger: Ledger
) -> None:
    releases: list[tuple[int, str]] = []
    strict = gate(task, ledger, releases=1, on_release=lambda *what: releases.append(what))
    before = task.initial_parameters(0)
    x = before + 1
    first = strict.difference(x, before, 0)
    first_bytes = first.numpy().tobytes()
    first.zero_()
    assert strict.difference(x.clone(), before.clone(), 0).numpy().tobytes() == first_bytes
    assert releases == [(0, "a")]
    assert ledger.compositions == 1
    strict.difference(x, before, 1)
    assert [(row.compositions, row.mechanism.releases) for row in ledger.rows()] == [(2, 1)], (
        "accounted like gradients"
    )


def test_no_second_release_beside_a_difference(task: Small, ledger: Ledger) -> None:
    """Neither another difference nor either model's gradient, in that round or one before, in
    either order.
    """
    strict = gate(task, ledger)
    before = task.initial_parameters(0)
    x = before + 1
    strict.difference(x, before, 3)
    for pair in ((x, x), (before, before), (before, x), (x + 1, before)):
        with pytest.raises(QuestionRefused):
            strict.difference(*pair, 3)
    for model in (x, before):
        with pytest.raises(QuestionRefused):
            strict(model, 3, "a")
        with pytest.raises(QuestionRefused):
            strict.own(model, 2)
    strict.own(x, 4)
    with pytest.raises(QuestionRefused):
        strict.difference(x, before, 4)
    assert ledger.compositions == 2


@pytest.mark.parametrize("budget", [True, False])
def test_a_difference_that_is_withheld_is_no_zero(
    task: Small, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, budget: bool
) -> None:
    """Zeros would say that the gradient has not changed."""
    why: list[str] = []
    strict = gate(task, ledger, on_withheld=lambda t, to, reason: why.append(reason))
    assert isinstance(strict, DPGate)
    if budget:
        strict.budget = 0
    else:
        monkeypatch.setitem(failpoint._ARMED, "after_ledger_append", failpoint._Armed("enospc", 1))
    with pytest.raises(Withheld):
        strict.difference(task.initial_parameters(0) + 1, task.initial_parameters(0), 0)
    assert (strict.withheld, len(why), ledger.compositions) == (1, 1, 0)


def test_the_difference_of_mode_none_is_of_one_batch(task: Small) -> None:
    releases: list[tuple[int, str]] = []
    clear = gate(
        task,
        None,
        config_mode="none",
        config_batch=16,
        on_release=lambda *what: releases.append(what),
    )
    before = task.initial_parameters(0)
    x = before + 1
    gained = clear.difference(x, before, 5)
    torch.testing.assert_close(gained, clear.own(x, 5) - clear.own(before, 5))
    assert releases == [(5, "a")]
    assert not clear.difference(x, x, 5).any()
    assert not gained.equal(clear.difference(x, before, 6))


def clipped_difference(task: Small, strict: DPGate, x: Tensor, before: Tensor) -> float:
    """How far the released sum is from Σ_b clip(clip ∇ℓ_b(x) − clip ∇ℓ_b(before)), written as
    stupidly as possible.
    """
    clip = strict.config.privacy.clip
    total = torch.zeros(task.layout.size, dtype=torch.float64)
    for row in range(task.num_examples):
        each = []
        for model in (x, before):
            leaf = model.clone().requires_grad_()
            example = tuple(part[0] for part in task.batch(torch.tensor([row])))
            g = torch.autograd.grad(task.loss(views(task.layout, leaf), example), leaf)[0].double()
            each.append(g * min(1.0, clip / max(float(g.norm()), 1e-300)))
        g = each[0] - each[1]
        if g.isfinite().all():
            total += g * min(1.0, clip / max(float(g.norm()), 1e-300))
    return float(
        (strict.difference(x, before, 0).double() * strict.config.privacy.batch - total).norm()
    )


def clipped_apart(
    task: Any, x: Tensor, rows: Tensor, clip: float, *, before: Tensor | None = None, **options: Any
) -> Tensor:
    """A bug: each gradient is clipped, and one example moves their difference by 2C."""
    total = clipping.clipped_sum(task, x, rows, clip, **options)
    return (
        total
        if before is None
        else total - clipping.clipped_sum(task, before, rows, clip, **options)
    )


@pytest.mark.parametrize("bug", ["none", "clipped apart", "not clipped", "plain gradients"])
@pytest.mark.parametrize("backend", ["ghost", "vmap"])
def test_the_gradients_of_a_difference_are_clipped_and_it_once_more(
    bug: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_small("mlp", n=12)
    task.x[0] = NAN
    if bug == "clipped apart":
        monkeypatch.setattr(gate_module, "clipped_sum", clipped_apart)
    if bug == "not clipped":
        monkeypatch.setattr(materialized, "clip_and_sum", no_clip_finite)
        monkeypatch.setattr(
            ghost, "clip_and_sum", lambda models, clip: ghost_difference(models, clip, 1e9)
        )
    if bug == "plain gradients":
        monkeypatch.setattr(materialized, "clip_", lambda gradients, clip: None)
        monkeypatch.setattr(
            ghost, "clip_and_sum", lambda models, clip: ghost_difference(models, 1e9, clip)
        )
    with Ledger.in_memory() as ledger:  # hardly any noise: the sum is seen
        bare = gate(
            task,
            ledger,
            config_rate=1.0,
            config_batch=16,
            config_clip=0.5,
            config_sigma=1e-4,
            config_backend=backend,
        )
        assert isinstance(bare, DPGate)
        off = clipped_difference(
            task, bare, task.initial_parameters(0) * -3, task.initial_parameters(0)
        )
        assert (off < 0.02) == (bug == "none")
        assert ledger.compositions == 1


def no_clip_finite(gradients: Any, clip: float) -> Any:
    return {name: g.double().nan_to_num().sum(0) for name, g in gradients.items()}, all_of(
        gradients
    )


# -- the ledger fails, the budget ends -------------------------------------------------------------


def test_a_failing_ledger_withholds_and_recovers(
    task: Small, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases: list[tuple[int, str]] = []
    strict = gate(task, ledger, on_release=lambda *what: releases.append(what))
    x = task.initial_parameters(0)
    monkeypatch.setitem(failpoint._ARMED, "after_ledger_append", failpoint._Armed("enospc", 1))
    with pytest.raises(Withheld):
        strict(x, 0, "b")
    assert "nothing is released" in strict.fault
    assert releases == [], "no release is reported before its debit stands"
    with pytest.raises(Withheld):
        strict(x, 0, "b")  # this round's noise is never drawn again
    monkeypatch.setitem(failpoint._ARMED, "after_ledger_append", failpoint._Armed("enospc", 1))
    assert not strict(x, 0, "a").any()
    assert not strict.own(x, 0).any()
    assert strict.withheld == 2, "b's and the own one, however often they were asked for"
    assert ledger.compositions == 0
    assert strict(x, 1, "b").any()
    assert (strict.fault, strict.faults, ledger.compositions) == ("", 2, 1)


@pytest.mark.parametrize("what", ["budget", "releases"])
def test_two_answers_that_are_computed_at_once_are_not_both_released_where_one_is_left(
    task: Small, ledger: Ledger, what: str
) -> None:
    """Both were let in while one was left; who is debited first has it."""

    def yield_point() -> None:
        if pending:
            inner.append(strict(x, 0, pending.pop()))

    pending, inner = ["c"], list[Tensor]()
    strict = gate(
        task,
        ledger,
        yield_point=yield_point,
        config_chunk=8,
        releases=1 if what == "releases" else 3,
    )
    assert isinstance(strict, DPGate)
    if what == "budget":
        strict.budget = 1
    x = task.initial_parameters(0)
    with pytest.raises(Withheld):
        strict(x, 0, "b")
    assert inner[0].any()
    assert (ledger.compositions, strict.exhausted) == (1, what == "budget")


@pytest.mark.parametrize("batches", ["independent", "shared"])
def test_the_budget_is_kept_exactly(task: Small, ledger: Ledger, batches: str) -> None:
    limit, x = 6.0, task.initial_parameters(0)
    strict = gate(
        task,
        ledger,
        rounds=50,
        limit=limit,
        limit_delta=1e-3,
        config_batches=batches,
        config_sigma=2.0,
    )
    released = 0
    for round in range(50):
        for to in ("a", "b", "c"):
            try:
                released += bool(strict(x, round, to).any())
            except Withheld:
                assert to != "a"
    assert strict.exhausted
    assert 0 < released < 150
    spent = ledger.rows()
    assert epsilon_pld(spent, 1e-3) <= limit
    more = [Spent(spent[0].mechanism, spent[0].compositions + 1)]
    assert epsilon_pld(more, 1e-3) > limit
    assert not strict.own(x, 49).any()

    def again(run: str, limit: float) -> GradientGate:
        privacy = {"config_batches": batches, "config_sigma": 2.0}
        about: dict[str, Any] = {"rounds": 50, "limit": limit, "limit_delta": 1e-3, **privacy}
        return gate(task, ledger, run=run, **about)

    with pytest.raises(BudgetSpent, match="no release to this run"):
        again("later", limit)
    assert not again("run", limit).own(x, 49).any(), "what has begun goes on mixing"
    again("later", limit + 1)


def test_earlier_runs_without_a_guarantee_leave_no_budget(task: Small, ledger: Ledger) -> None:
    gate(task, ledger, run="open", config_mode="none")
    with pytest.raises(BudgetSpent, match="ε_total = inf"):
        gate(task, ledger, limit=1000.0)


@pytest.mark.parametrize("mode", ["paper", "none"])
def test_a_limit_needs_a_mode_that_can_keep_it(task: Small, ledger: Ledger, mode: str) -> None:
    with pytest.raises(ConfigurationError, match=r"budget\.epsilon"):
        gate(task, ledger, limit=8.0, config_mode=mode)


def test_noise_without_a_ledger_is_refused(task: Small) -> None:
    with pytest.raises(LedgerError, match="without a ledger"):
        gate(task, None)


# -- batches ---------------------------------------------------------------------------------------


def drawn(strict: DPGate, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every later answer."""
    seen: list[list[int]] = []

    def spy(task: Any, x: Tensor, rows: Tensor, clip: float, **options: Any) -> Tensor:
        seen.append(rows.tolist())
        return clipped_sum(task, x, rows, clip, **options)

    monkeypatch.setattr(gate_module, "clipped_sum", spy)
    return seen


def test_batches_are_poisson_and_independent_or_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_small(n=400)
    for batches in ("independent", "shared"):
        with Ledger.in_memory() as ledger:
            strict = gate(task, ledger, config_batches=batches, config_rate=0.3)
            assert isinstance(strict, DPGate)
            rows = drawn(strict, monkeypatch)
            for round in range(10):
                for to in "abc":
                    strict(task.initial_parameters(0), round, to)
            assert abs(np.mean([len(r) for r in rows]) - 120) < 8
            assert len({len(r) for r in rows}) > 3  # Poisson: the size varies
            distinct = len({tuple(r) for r in rows})
            assert distinct == (30 if batches == "independent" else 10)
            assert ledger.compositions == distinct


def test_fresh_keys_draw_other_batches_and_noise_in_every_process(task: Small) -> None:
    with Ledger.in_memory() as first, Ledger.in_memory() as second:
        x = task.initial_parameters(0)
        assert not gate(task, first, Keys.fresh())(x, 0, "b").equal(
            gate(task, second, Keys.fresh())(x, 0, "b")
        )
    with Ledger.in_memory() as first, Ledger.in_memory() as second:
        assert gate(task, first)(x, 0, "b").equal(gate(task, second)(x, 0, "b"))


def batch_of(task: Small, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of an answer of a new gate."""
    with Ledger.in_memory() as ledger:
        strict = gate(task, ledger, keys)
        assert isinstance(strict, DPGate)
        rows = drawn(strict, monkeypatch)
        strict(task.initial_parameters(0), 0, "b")
        return rows[0]


def test_fresh_keys_draw_other_batches(task: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is released the noise would hide that a public seed draws them."""
    first, second = (batch_of(task, Keys.fresh(), monkeypatch) for _ in range(2))
    assert first != second


def test_torchs_seed_has_no_part_in_a_batch(task: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batches.append(batch_of(task, Keys.insecure(1, "a"), monkeypatch))
    assert batches[0] == batches[1]


# -- the other gates -------------------------------------------------------------------------------


def test_paper_own_is_clean_on_the_same_batch(task: Small, ledger: Ledger) -> None:
    paper = gate(task, ledger, config_mode="paper", config_rate=1.0)
    assert isinstance(paper, PaperGate)
    x = task.initial_parameters(0)
    own = paper.own(x, 0)
    oracle = clipping.clipped_sum(task, x, torch.arange(task.num_examples), 1.0) / 20
    torch.testing.assert_close(own, oracle.float())
    assert not paper(x, 0, "a").equal(own)
    assert paper(x, 0, "b").any()
    assert [row.mechanism.mode for row in ledger.rows()] == ["paper"]
    assert epsilon_pld(ledger.rows(), 1e-5) == float("inf")
    with pytest.raises(QuestionRefused):
        paper.own(x + 1, 0)
    paper.difference(x + 1, x, 1)
    with pytest.raises(QuestionRefused):  # nor the clean difference by another name
        paper.own(x + 1, 1)


def test_paper_own_is_withheld_with_its_debit(
    task: Small, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = gate(task, ledger, config_mode="paper")
    monkeypatch.setitem(failpoint._ARMED, "before_ledger_append", failpoint._Armed("eio", 1))
    assert not paper.own(task.initial_parameters(0), 0).any()


def test_paper_own_of_an_earlier_round_is_no_answer(task: Small, ledger: Ledger) -> None:
    paper, x = gate(task, ledger, config_mode="paper", releases=1), task.initial_parameters(0)
    assert paper.own(x, 0).any()
    paper(x, 1, "b")
    assert not paper.own(x, 1).any(), "the round has no release left for me"


def test_clear_gradients_are_plain_public_and_free(task: Small) -> None:
    clear = gate(task, None, config_mode="none", config_batch=16)
    assert isinstance(clear, NonPrivateGate)
    x = task.initial_parameters(0)
    assert clear(x, 0, "b").equal(clear(x, 0, "c"))
    assert clear.own(x, 0).equal(clear(x, 0, "a"))
    assert gate(task, None, config_mode="none", config_batch=16)(x, 0, "b").equal(clear(x, 0, "b"))
    assert not clear(x, 1, "b").equal(clear(x, 0, "b"))
    whole = gate(task, None, config_mode="none", config_batch=1000)(x, 0, "b")
    torch.testing.assert_close(
        whole, clipping.mean_gradient(task, x, torch.arange(task.num_examples))
    )


def test_calibrated_noise_covers_the_largest_neighborhood() -> None:
    config = PrivacySection(epsilon=8.0, delta=1e-4, rate=0.0512)
    sigma = noise_multiplier(config, d=650, rounds=1000, releases=3)
    assert sigma == pytest.approx(1.68, rel=0.01)
    mechanism = release_mechanism(config, d=650, sigma=sigma, releases=3, unit="")
    assert 7.9 < epsilon_pld([Spent(mechanism, 3000)], 1e-4) <= 8.0
    assert noise_multiplier(PrivacySection(sigma=2.5), d=650, rounds=1, releases=3) == 2.5


def test_what_is_accounted_is_what_the_grid_leaves_of_the_noise(
    task: Small, ledger: Ledger
) -> None:
    gate(task, ledger, config_sigma=2.0)(task.initial_parameters(0), 0, "b")
    [row] = ledger.rows()
    assert row.mechanism.sigma == noise.effective(2.0, task.layout.size) < 2.0
    large = release_mechanism(PrivacySection(sigma=2.0), d=10**9, sigma=2.0, releases=1, unit="")
    assert large.sigma == pytest.approx(2.0 / (1 + 2.0 * 10**4.5 / noise.STEPS), rel=1e-4)
    assert large.sigma < 1.9


# -- what a release is: one detector, and the bugs it must find ------------------------------------


def oracle(task: Small, x: Tensor, clip: float) -> Tensor:
    """Σ_b clipped gradients, written as stupidly as possible."""
    total = torch.zeros(task.layout.size, dtype=torch.float64)
    for row in range(task.num_examples):
        leaf = x.clone().requires_grad_()
        example = tuple(part[0] for part in task.batch(torch.tensor([row])))
        (g,) = torch.autograd.grad(task.loss(views(task.layout, leaf), example), leaf)
        if g.isfinite().all():
            total += g.double() * min(1.0, clip / max(float(g.double().norm()), 1e-300))
    return total


def violations(backend: str = "vmap") -> set[str]:
    """What a whole run of releases breaks. Empty for sound code."""
    batch, clip = 16, 0.5
    task = make_small("mlp", n=12)
    task.x[0] = NAN  # one example without a finite gradient
    try:
        return _broken_sum(task, batch, clip, backend) | _broken_noise(task, batch, clip, backend)
    except ValueError:  # the noise refuses a sum that is not finite
        return {"sum"}


def _broken_sum(task: Small, batch: int, clip: float, backend: str) -> set[str]:
    broken: set[str] = set()
    options: dict[str, Any] = {
        "config_batch": batch,
        "config_clip": clip,
        "config_backend": backend,
    }
    with Ledger.in_memory() as ledger:  # hardly any noise: the sum is seen
        bare = gate(task, ledger, config_rate=1.0, config_sigma=1e-4, **options)
        for round, scale in enumerate((1.0, 30.0)):
            x = task.initial_parameters(0) * scale
            released = bare(x, round, "b").double() * batch
            if not float((released - oracle(task, x, clip)).norm()) < 0.02:
                broken.add("sum")
        if ledger.compositions != 2:
            broken.add("debit")
    return broken


def _broken_noise(task: Small, batch: int, clip: float, backend: str) -> set[str]:
    broken: set[str] = set()
    options: dict[str, Any] = {
        "config_batch": batch,
        "config_clip": clip,
        "config_backend": backend,
    }
    with Ledger.in_memory() as ledger:  # no finite gradient at all: the noise is seen
        noisy = gate(task, ledger, config_rate=0.5, config_sigma=2.0, **options)
        x = torch.full_like(task.initial_parameters(0), NAN)
        noises = {
            (t, to): noisy(x, t, to) * batch / (2.0 * clip) for t in range(10) for to in "abc"
        }
        everything = torch.cat(list(noises.values()))
        if not abs(float(everything.std()) - 1.0) < 0.03:
            broken.add("std")
        if abs(float((noises[0, "a"] * noises[0, "b"]).mean())) > 0.2 or noises[0, "a"].equal(
            noises[1, "a"]
        ):
            broken.add("reuse")
        if not noisy(x, 9, "a").equal(noises[9, "a"] / batch * (2.0 * clip)):
            broken.add("repeat")
        if ledger.compositions != 30:
            broken.add("debit")
    return broken


def no_clip(gradients: Any, clip: float) -> Any:
    return {name: g.double().sum(0) for name, g in gradients.items()}


def clip_the_batch(gradients: Any, clip: float) -> Any:
    sums = {name: g.double().nan_to_num().sum(0) for name, g in gradients.items()}
    norm = torch.stack([g.norm() for g in sums.values()]).norm()
    return {name: g * (clip / norm).clamp(max=1) for name, g in sums.items()}


def clip_each_tensor(gradients: Any, clip: float) -> Any:
    return {name: CLIP_AND_SUM({name: g}, clip)[0][name] for name, g in gradients.items()}, all_of(
        gradients
    )


def all_of(gradients: Any) -> Tensor:
    """Every example is usable."""
    return torch.ones(len(next(iter(gradients.values()))), dtype=torch.bool)


def clamp_instead_of_mask(gradients: Any, clip: float) -> Any:
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    factor = (clip / norm).clamp(max=1).double()
    return {
        name: torch.einsum("n,n...->...", factor, g.double()) for name, g in gradients.items()
    }, all_of(gradients)


CLIP_AND_SUM, RELEASE, STREAM = materialized.clip_and_sum, noise.release, Keys.stream
GHOST = ghost.clip_and_sum


def ghost_difference(models: Any, inner: float, outer: float) -> Any:
    """As `ghost.clip_and_sum`, with a bound for each gradient and another for their difference."""
    total: dict[str, Tensor] = {}
    for row in range(len(next(iter(models[0].values()))[0])):
        each = [
            {name: (delta[row : row + 1], a[row : row + 1]) for name, (delta, a) in it.items()}
            for it in models
        ]
        here, there = (GHOST([it], inner)[0] for it in each)
        moved, _ = CLIP_AND_SUM(
            {name: (here[name] - there[name]).unsqueeze(0) for name in here}, outer
        )
        total = {name: total.get(name, 0) + it for name, it in moved.items()}
    return total, every(models)


def every(models: Any) -> Tensor:
    """Every example of factors is usable."""
    return torch.ones(len(next(iter(models[0].values()))[0]), dtype=torch.bool)


def ghost_of_each_tensor(models: Any, clip: float) -> Any:
    return {
        name: GHOST([{name: each[name]} for each in models], clip)[0][name] for name in models[0]
    }, every(models)


def ghost_clamped(models: Any, clip: float) -> Any:
    weight = (clip / ghost._inner(models[0], models[0]).sqrt()).clamp(max=1)
    total = {
        name: (weight.unsqueeze(1) * delta).t().double() @ a.double()
        for name, (delta, a) in models[0].items()
    }
    return total, every(models)


def scaled(part: float, divisor: float = 1.0) -> Callable[..., Tensor]:
    def release(total: Tensor, sigma: float, clip: float, batch: int, stream: Stream) -> Tensor:
        compositions = noise.noised(total * 0, sigma, clip, stream)
        z = torch.from_numpy(compositions) * noise.grid(sigma, clip)
        return ((total + part * z) / (batch * divisor)).to(torch.float32)

    return release


def same_for_all(self: Keys, purpose: str, round: int, recipient: str) -> Stream:
    if purpose == "noise":
        return STREAM(Keys.insecure(1, "a"), purpose, 0, "")
    return STREAM(self, purpose, round, recipient)


def forgetful(self: DPGate, question: Any, t: int, to: str) -> Tensor:
    self.keys = Keys.fresh()
    total, stream = self._clipped(question, t, to), self.keys.stream("noise", t, to)
    config, privacy = self.config, self.config.privacy
    if self.ledger.last_round(config.run, to) < t:
        self.ledger.debit(config.run, t, to, self.mechanism)
    return noise.release(total, config.sigma, privacy.clip, privacy.batch, stream)


BUGS: dict[str, tuple[Any, str, Any]] = {
    "gradients are not clipped": (materialized, "clip_and_sum", no_clip),
    "the batch is clipped, not each example": (materialized, "clip_and_sum", clip_the_batch),
    "each tensor is clipped on its own": (materialized, "clip_and_sum", clip_each_tensor),
    "a NaN norm is clamped": (materialized, "clip_and_sum", clamp_instead_of_mask),
    "a ghost is not clipped": (ghost, "clip_and_sum", lambda models, clip: GHOST(models, 1e9)),
    "each tensor of a ghost is clipped on its own": (ghost, "clip_and_sum", ghost_of_each_tensor),
    "a ghost's NaN norm is clamped": (ghost, "clip_and_sum", ghost_clamped),
    "no noise": (noise, "release", scaled(0.0)),
    "half the noise": (noise, "release", scaled(0.5)),
    "noise on the mean": (noise, "release", scaled(1 / 16)),
    "another divisor": (noise, "release", scaled(1.0, 0.75)),
    "one noise for all": (Keys, "stream", same_for_all),
    "fresh noise for a repeat": (DPGate, "_answer", forgetful),
    "no debit": (Ledger, "debit", lambda *_: 0),
}


BROKEN = dict(
    zip(BUGS, ["sum"] * 7 + ["std"] * 3 + ["sum", "reuse", "repeat", "debit"], strict=True)
)


@pytest.mark.parametrize("backend", ["ghost", "vmap", "loop"])
def test_sound_code_breaks_nothing(backend: str) -> None:
    assert violations(backend) == set()


@pytest.mark.parametrize("bug", BUGS)
def test_seeded_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, broken = BUGS[bug]
    monkeypatch.setattr(where, name, broken)
    assert BROKEN[bug] in violations("ghost" if where is ghost else "vmap")


KILLED = """
import sys
from pathlib import Path
from kit.small_task import gate, make_small
from node.privacy.ledger import Ledger
from peer import failpoint
failpoint.arm()
task = make_small()
strict = gate(task, Ledger.open(Path(sys.argv[1]), "digits"))
for round in range(5):
    strict(task.initial_parameters(0), round, "b")
    print("released", flush=True)
"""


@pytest.mark.parametrize("point", ["before_noise", "after_noise", "after_ledger_fsync"])
def test_kill_9_within_a_release(tmp_path: Path, point: str) -> None:
    path = os.pathsep.join(sys.path)
    environment = os.environ | {failpoint.VARIABLE: f"{point}=kill@3", "PYTHONPATH": path}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (result.returncode, result.stdout.count(b"released")) == (-signal.SIGKILL, 2)
    with Ledger.open(tmp_path, "digits") as ledger:
        assert ledger.compositions == (3 if point == "after_ledger_fsync" else 2)
        task = make_small()
        with pytest.raises(QuestionRefused):
            gate(task, ledger)(task.initial_parameters(0), 1, "b")
