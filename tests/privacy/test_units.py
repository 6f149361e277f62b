"""With `task.unit` a person is the example: all of their rows or none are in a batch, averaged
before the clip, and whoever's rows come or go moves a sum by C at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kit.small_task import Small, gate, make_small
from kit.zoo import PURE, RANDOM, RECORDS, Kind
from node.maths.backends import choose
from node.maths.blocks import partition_blocks
from node.maths.chunks import Backend
from node.maths.clipping import SLACK, clipped_sum, mean_gradient
from node.maths.per_example import fetch
from node.maths.purity import keyed_seeds, seeded_rows
from node.privacy.accountant import Mechanism, Spent, epsilon_pld, epsilon_rdp, epsilon_total
from node.privacy.gate import DPGate
from node.privacy.ledger import Ledger
from node.privacy.unit_task import UnitTask
from node.randomness import Keys
from node.task import Rebatched, Task, views
from peer.errors import ConfigurationError

CHUNK, CLIP = 16, 0.3
SEEDS = keyed_seeds(b"seeds")
BACKENDS: list[Backend] = ["vmap", "loop"]


class Owned(Rebatched):
    """A task that says whose its examples are."""

    def __init__(self, task: Task, units: list[int]) -> None:
        super().__init__(task)
        self._units = np.array(units)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._task.batch(rows)

    @property
    def units(self) -> NDArray[np.int64]:
        return self._units


def of_persons(task: Task, units: list[int], most: int = 4) -> UnitTask:
    return UnitTask(Owned(task, units), most)


def uneven(n: int) -> list[int]:
    """Persons with 1, 2, 3, … rows, whose rows lie apart."""
    numbers = [person for person in range(n) for _ in range(person + 1)][:n]
    return [numbers[(7 * row) % n] for row in range(n)]


def naive(task: Task, x: Tensor, persons: list[list[int]], clip: float) -> Tensor:
    """Person by person and row by row, with autograd alone; the oracle."""
    clipped = [g * min(1.0, clip / float(g.norm())) for g in means(task, x, persons)]
    return torch.stack(clipped).sum(0)


def means(task: Task, x: Tensor, persons: list[list[int]]) -> Iterator[Tensor]:
    """Each person's gradient, flat float64 [d]."""
    for rows in persons:
        mean = torch.zeros(task.layout.size, dtype=torch.float64)
        for row in rows:
            leaves = {n: v.clone().requires_grad_() for n, v in views(task.layout, x).items()}
            example = tuple(column[0] for column in task.batch(torch.tensor([row])))
            gradients = torch.autograd.grad(task.loss(leaves, example), list(leaves.values()))
            mean += torch.cat([g.reshape(-1) for g in gradients]).double() / len(rows)
        yield mean


def drawn(task: UnitTask, small: Small, persons: Tensor) -> list[list[int]]:
    """Which rows of each person the seeds draw, told by what is in them."""
    x, _, weights = fetch(task, persons, SEEDS)
    known = {row.numpy().tobytes(): number for number, row in enumerate(small.x)}
    return [
        [known[place.numpy().tobytes()] for place in mine[: int((weight > 0).sum())]]
        for mine, weight in zip(x, weights, strict=True)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["softmax", "mlp", "cnn"])
def test_it_is_what_a_loop_over_persons_gives(kind: str, backend: Backend) -> None:
    small = make_small(kind)
    task = of_persons(small, uneven(40))
    x, persons = 2 * small.initial_parameters(0), torch.arange(task.num_examples)
    rows = drawn(task, small, persons)
    assert {len(mine) for mine in rows} == {1, 2, 3, 4}
    expected = naive(small, x, rows, CLIP)
    actual = clipped_sum(task, x, persons, CLIP, backend=backend, seeds=SEEDS)
    assert float((actual - expected).norm()) <= 1e-5 * float(expected.norm())
    every_row = naive(small, x, [[row] for row in range(40)], CLIP)  # power: clipped row by row
    assert float((actual - every_row).norm()) > 0.1 * float(expected.norm())


@pytest.mark.parametrize("kind", ["softmax", "mlp", "cnn"])
def test_without_privacy_it_is_the_mean_over_persons(kind: str) -> None:
    small = make_small(kind)
    task = of_persons(small, uneven(40))
    x, persons = small.initial_parameters(0), torch.arange(task.num_examples)
    expected = naive(small, x, drawn(task, small, persons), 1e9) / len(persons)
    actual = mean_gradient(task, x, persons, seeds=SEEDS)
    assert torch.allclose(actual, expected.float(), atol=1e-6)


def test_at_most_so_many_rows_of_a_person_and_only_their_own() -> None:
    small = make_small()
    units = uneven(40)
    task = of_persons(small, units)
    persons = torch.arange(task.num_examples)
    seen: list[set[int]] = [set() for _ in persons]
    for seed in range(60):
        batch = fetch(task, persons, keyed_seeds(bytes([seed])))
        assert torch.allclose(batch[-1].sum(1), torch.ones(len(persons)))
        known = {row.numpy().tobytes(): number for number, row in enumerate(small.x)}
        for person, places in enumerate(batch[0]):
            rows = [known[place.numpy().tobytes()] for place in places]
            own = {row for row in range(40) if units[row] == person}
            assert {*rows} <= own
            assert len({*rows}) == min(4, len(own))
            seen[person] |= {*rows}
    assert [len(rows) for rows in seen] == np.bincount(units).tolist()  # in the end all of them


def test_what_is_drawn_of_a_person_depends_on_nobody_else() -> None:
    task = of_persons(make_small(), uneven(40))
    together = fetch(task, torch.arange(task.num_examples), SEEDS)
    for person in range(task.num_examples):
        alone = fetch(task, torch.tensor([person]), SEEDS)
        assert all(a[person].equal(b[0]) for a, b in zip(together, alone, strict=True))


BOUNDED: dict[str, Kind] = {**PURE, **RANDOM}


def without(kind: Kind, person: int, units: list[int]) -> UnitTask:
    """Where that person and all of their rows were never there; the others have their numbers."""
    task = kind.make()
    kept = torch.tensor([row for row in range(RECORDS) if units[row] != person])
    task.columns = tuple(column[kept] for column in task.columns)
    task.num_examples = len(kept)
    return of_persons(task, [units[row] for row in kept.tolist()])


@pytest.mark.parametrize("kind", BOUNDED.values(), ids=BOUNDED)
def test_all_rows_of_one_person_move_the_sum_by_at_most_c(kind: Kind) -> None:
    """The first row is as a broken sensor gives it."""
    units = [row % 5 for row in range(RECORDS)]
    whole = of_persons(kind.make(), units)
    backend = choose("auto", whole, CHUNK).backend
    x = 3 * whole.initial_parameters(0)

    def total(task: UnitTask, persons: list[int], numbers: list[int]) -> Tensor:
        seeds = {mine: SEEDS(number) for mine, number in zip(persons, numbers, strict=True)}
        rows = torch.tensor(persons)
        return clipped_sum(
            task, x, rows, 1.0, chunk=CHUNK, backend=backend, seeds=seeds.__getitem__
        )

    before = total(whole, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert before.any()
    for person in (0, 3):
        others = [number for number in range(5) if number != person]
        after = total(without(kind, person, units), [0, 1, 2, 3], others)
        assert float((before - after).norm()) <= 1 + SLACK, person


def test_clipped_row_by_row_a_person_would_move_it_further() -> None:
    """Power: what the test above bounds is more than C where persons are not known."""
    kind, units = PURE["plain"], [row % 5 for row in range(RECORDS)]
    task = kind.make()
    x = 3 * task.initial_parameters(0)
    every = torch.arange(RECORDS)
    kept = torch.tensor([row for row in range(RECORDS) if units[row] != 0])
    before, after = (clipped_sum(task, x, rows, 1.0, backend="vmap") for rows in (every, kept))
    assert float((before - after).norm()) > 1.5


@pytest.mark.parametrize("name", ["plain", "ghost", "tied", "mask of integers", "Embedding"])
def test_what_vmap_takes_it_takes_of_persons(name: str) -> None:
    task = of_persons(PURE[name].make(), [row % 5 for row in range(RECORDS)])
    assert choose("auto", task, CHUNK).backend == "vmap"


def test_a_model_under_which_a_persons_rows_cancel_is_clipped_all_the_same() -> None:
    """Why there is no ghost clipping of persons: rows of 1e6 · C that cancel but for a little."""
    small = make_small("softmax", n=2)
    small.x[1] = small.x[0] * (1 + 1e-4)
    small.y[0], small.y[1] = 0, 1
    task = of_persons(small, [0, 0])
    x = 1e4 * small.initial_parameters(0)
    for backend in BACKENDS:
        total = clipped_sum(task, x, torch.tensor([0]), 1e-6, backend=backend)
        assert float(total.norm()) <= 1e-6 * (1 + SLACK)


def strict(task: UnitTask, ledger: Ledger, seed: int = 1, **changes: Any) -> DPGate:
    made = gate(task, ledger, Keys.insecure(seed, "a"), unit="person", **changes)
    assert isinstance(made, DPGate)
    return made


def test_persons_are_drawn_and_not_rows() -> None:
    """All rows of a person or none, each person with probability q, whoever else is there."""
    task = of_persons(make_small(n=120), [row % 30 for row in range(120)], most=8)
    assert task.num_examples == 30
    counts = torch.zeros(30)
    sizes = []
    rounds = 2000
    with Ledger.in_memory() as ledger:
        one = strict(task, ledger, rounds=rounds, config_rate=0.2)
        for t in range(rounds):
            persons = one._draw(t, "b")
            counts[persons] += 1
            sizes.append(len(persons))
    assert torch.all((counts / rounds - 0.2).abs() < 5 * sqrt(0.2 * 0.8 / rounds))
    assert abs(float(np.mean(sizes)) - 6) < 0.3
    assert abs(float(np.var(sizes)) - 30 * 0.2 * 0.8) < 0.8  # binomial: independent of each other


def test_the_divisor_and_the_bound_count_persons(ledger: Ledger) -> None:
    """σ next to nothing: a release is the sum over the drawn persons ÷ B."""
    small = make_small()
    task = of_persons(small, uneven(40), most=40)  # so that all rows are drawn
    made = strict(task, ledger, config_rate=1.0, config_batch=5, config_sigma=1e-9)
    x = small.initial_parameters(0)
    members = [[row for row in range(40) if uneven(40)[row] == k] for k in range(9)]
    expected = naive(small, x, members, 1.0) / 5
    held = min(1.0, 5.0 / float(expected.norm() * 5))  # n = B/q = 5 persons
    assert torch.allclose(made(x, 0, "b").double(), expected * held, atol=1e-5)


def test_blocks_and_differences_are_of_persons_too(ledger: Ledger) -> None:
    small = make_small("mlp")
    task = of_persons(small, uneven(40), most=40)
    names = [name for name, _ in small.layout.fields]
    block = partition_blocks(small.layout, [names[:2], names[2:]], 1)[1]
    exact: dict[str, Any] = {
        "config_rate": 1.0,
        "config_batch": 9,
        "config_sigma": 1e-9,
        "config_clip": 0.1,
    }
    made = strict(task, ledger, **exact)
    x = small.initial_parameters(0)
    members = [[row for row in range(40) if uneven(40)[row] == k] for k in range(9)]

    def clipped(g: Tensor) -> Tensor:
        return g * min(1.0, 0.1 / float(g.norm()))

    here = [*means(small, x, members)]
    theta = x[block.span].clone()
    expected = torch.stack([clipped(g[block.span]) for g in here]).sum(0) / 9
    assert torch.allclose(made.within(x, block)(theta, 0).double(), expected, atol=1e-6)
    there = [*means(small, 2 * x, members)]
    gained = [clipped(clipped(b) - clipped(a)) for a, b in zip(here, there, strict=True)]
    expected = torch.stack(gained).sum(0) / 9
    assert torch.allclose(made.difference(2 * x, x, 1).double(), expected, atol=1e-6)


def test_a_persons_epsilon_is_that_of_so_many_examples(ledger: Ledger) -> None:
    """The mechanism is the same one: only whom it protects is another."""
    task = of_persons(make_small(), uneven(40))
    made = strict(task, ledger)
    made(task.initial_parameters(0), 0, "b")
    (row,) = ledger.rows("run")
    assert row.mechanism.unit == "person"
    as_examples = Mechanism(
        sigma=row.mechanism.sigma, rate=row.mechanism.rate, releases=row.mechanism.releases
    )
    assert epsilon_pld([row], 1e-5) == epsilon_pld([Spent(as_examples, 1)], 1e-5)
    assert epsilon_total(row.mechanism, 10, 1e-5) == epsilon_total(as_examples, 10, 1e-5)


def test_a_ledger_keeps_whom_it_protects(tmp_path: Path) -> None:
    mechanism = Mechanism(sigma=2.0, rate=0.1, unit="patient per ward")
    with Ledger.open(tmp_path, "data") as ledger:
        ledger.debit("run", 0, "b", mechanism)
    with Ledger.open(tmp_path, "data") as ledger:
        assert ledger.rows() == [Spent(mechanism, 1)]


ROWS = Spent(Mechanism(sigma=2.0, rate=0.1), 10)
PERSONS = Spent(Mechanism(sigma=2.0, rate=0.1, unit="person"), 10)
WARDS = Spent(Mechanism(sigma=2.0, rate=0.1, unit="ward"), 10)


@pytest.mark.parametrize("figure", [epsilon_rdp, epsilon_pld])
@pytest.mark.parametrize("mixed", [[ROWS, PERSONS], [PERSONS, WARDS], [ROWS, PERSONS, WARDS]])
def test_epsilons_of_different_units_do_not_add_up(
    figure: Callable[..., float], mixed: list[Spent]
) -> None:
    assert figure(mixed, 1e-5) == float("inf")
    for row in mixed:
        assert figure([row, row], 1e-5) < 10


def test_why_they_do_not_add_up() -> None:
    """Clipped by persons, one more row of a person moves the sum by more than C."""
    small = make_small("softmax", n=2)
    small.x[0] = 10
    small.x[1] = -3 * small.x[0]  # whose gradient is the larger one, and the other way
    small.y[:] = 0
    x = torch.zeros(small.layout.size)
    first, second = (of_persons(small, units) for units in ([0, 1], [0, 0]))
    one_row, both = (
        clipped_sum(task, x, torch.tensor([0]), 1.0, backend="loop") for task in (first, second)
    )
    assert float((one_row - both).norm()) > 1.9


def test_a_budget_is_not_kept_over_different_units(ledger: Ledger) -> None:
    small = make_small()
    gate(small, ledger, limit=50.0)(small.initial_parameters(0), 0, "b")
    task = of_persons(make_small(), uneven(40))
    with pytest.raises(ConfigurationError, match="don't protect the same") as caught:
        strict(task, ledger, limit=50.0, run="second")
    assert "budget.epsilon" in str(caught.value)
    made = strict(task, ledger, run="second")  # unlimited: its owner wants no total
    made(small.initial_parameters(0), 0, "b")
    assert epsilon_rdp(ledger.rows(), 1e-5) == float("inf")
    assert epsilon_rdp(ledger.rows("second"), 1e-5) < 50


def test_a_task_that_does_not_say_whose_its_rows_are_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="whose its examples are"):
        UnitTask(make_small(), 4)


def test_nodes_of_one_process_take_turns_with_torchs_generator() -> None:
    """What one draws within a gradient is not moved by another's."""
    one_is_in, other_is_in, drew = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        one_is_in.wait()
        with seeded_rows(torch.device("cpu")) as seed:
            seed(9)
            other_is_in.set()
            drew.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with seeded_rows(torch.device("cpu")) as seed:
        seed(5)
        one_is_in.set()
        other_is_in.wait(0.2)  # never, if it has to wait for this one
        drawn = torch.rand(3)
        drew.set()
    thread.join()
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
