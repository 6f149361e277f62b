"""One record moves the clipped sum by C at most, for whatever model comes; or the model is refused
in one sentence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.small_task import gate
from kit.zoo import IMPURE, PURE, RANDOM, RECORDS, Kind, Model, Waking
from node.maths import backends
from node.maths.backends import pick, probe
from node.maths.chunks import Backend
from node.maths.clipping import SLACK, clipped_sum
from node.privacy.ledger import Ledger
from node.randomness import Keys
from node.task import flat, views
from peer.errors import ConfigurationError

CHUNK = 16
WANTED = ["auto", "loop"]
BOUNDED = {**PURE, **RANDOM}
EVERY = torch.arange(RECORDS)
REMOVED = [0, RECORDS // 2, RECORDS - 1]
"""The first one is odd: the gradients of such a record are the largest."""


def without(record: int) -> Tensor:
    return EVERY[EVERY != record]


def start(task: Model, scale: float = 3.0) -> Tensor:
    return scale * task.initial_parameters(0)


def question(task: Model, backend: Backend, rows: Tensor = EVERY) -> Tensor:
    return clipped_sum(task, start(task), rows, 1.0, chunk=CHUNK, backend=backend)


def unchecked(
    task: Model, x: Tensor, rows: Tensor, seeds: Callable[[int], int] | None = None
) -> Tensor:
    """The clipped sum, one record after the other, without a check of anything; the oracle."""
    leaves = {name: value.clone().requires_grad_() for name, value in views(task.layout, x).items()}
    total = torch.zeros(task.layout.size, dtype=torch.float64)
    for row in rows:
        if seeds:
            torch.manual_seed(seeds(int(row)))
        example = tuple(column[0] for column in task.batch(row.view(1)))
        gradients = torch.autograd.grad(
            task.loss(leaves, example), list(leaves.values()), materialize_grads=True
        )
        flattened = torch.cat([g.to_dense().reshape(-1) for g in gradients]).double()
        total += flattened * min(1.0, 1.0 / float(flattened.norm() + 1e-300))
    return total


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("kind", BOUNDED.values(), ids=BOUNDED)
def test_one_record_moves_the_sum_by_at_most_c(kind: Kind, wanted: Backend) -> None:
    here, there = kind.make(), kind.make()  # as two processes that don't know of each other
    backend = pick(wanted, here, CHUNK)
    assert pick(wanted, there, CHUNK) == backend
    whole = question(here, backend)
    assert whole.any()
    for record in REMOVED:
        moved = float((whole - question(there, backend, without(record))).norm())
        assert moved <= 1 + SLACK, record


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("kind", BOUNDED.values(), ids=BOUNDED)
def test_the_same_question_has_the_same_bits(kind: Kind, wanted: Backend) -> None:
    task = kind.make()
    backend = pick(wanted, task, CHUNK)
    first = question(task, backend)
    question(task, backend, without(1))
    assert question(task, backend).equal(first)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("kind", IMPURE.values(), ids=IMPURE)
def test_what_remembers_is_refused_by_its_name(kind: Kind, wanted: Backend) -> None:
    task = kind.make()
    try:
        backend = pick(wanted, task, CHUNK)
        whole = question(task, backend)
    except ConfigurationError as error:
        assert_a_sentence(error, kind.refused)
        return
    assert kind.when == "maybe", "it was not refused"
    for record in REMOVED:
        assert float((whole - question(kind.make(), backend, without(record))).norm()) <= 1 + SLACK


@pytest.mark.parametrize(
    "kind",
    [k for k in IMPURE.values() if k.when == "start"],
    ids=[name for name, k in IMPURE.items() if k.when == "start"],
)
def test_it_is_refused_before_any_private_record_is_seen(kind: Kind) -> None:
    with pytest.raises(ConfigurationError) as caught:
        probe(kind.make(), CHUNK)
    assert_a_sentence(caught.value, kind.refused)


def assert_a_sentence(error: ConfigurationError, words: str) -> None:
    sentence = str(error)
    assert re.search(words, sentence), sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 500


@pytest.mark.parametrize("kind", PURE.values(), ids=PURE)
def test_the_choice_has_a_reason(kind: Kind) -> None:
    choice = backends.choose("auto", kind.make(), CHUNK)
    assert choice.backend == probe(kind.make(), CHUNK)
    assert choice.reason
    assert "\n" not in choice.reason
    assert len(choice.reason) < 500


@pytest.mark.parametrize("kind", RANDOM.values(), ids=RANDOM)
def test_what_is_random_is_looped(kind: Kind) -> None:
    assert probe(kind.make(), CHUNK) == "loop"


EXPECTED = {
    "plain": "vmap",
    "ghost": "ghost",
    "tied": "vmap",
    "custom": "loop",
    "branch": "loop",
    "packed": "loop",
    "mask of integers": "vmap",
    "mask of floats": "vmap",
    "Embedding": "vmap",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_can_be_fast_is_fast(name: str) -> None:
    assert probe(PURE[name].make(), CHUNK) == EXPECTED[name]


def test_the_bound_is_reached() -> None:
    """Power: the odd record counts."""
    task = PURE["plain"].make()
    assert float((question(task, "vmap") - question(task, "vmap", without(0))).norm()) > 0.999


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["plain", "tied", "Conv2d", "Embedding"])
def test_the_sum_is_that_of_the_oracle(name: str, backend: Backend) -> None:
    task = PURE[name].make()
    torch.testing.assert_close(
        question(task, backend), unchecked(task, start(task), EVERY), atol=1e-5, rtol=1e-4
    )


MOVING = [
    "running mean",
    "running mean, reassigned",
    "running mean, no buffer",
    "running mean in a closure",
    "running mean in the task",
    "cache",
    "counter in the task",
    "own generator",
    "stateful",
]


@pytest.mark.parametrize("name", MOVING)
def test_power_without_a_check_such_a_model_breaks_the_bound(name: str) -> None:
    kind = IMPURE[name]
    x = start(kind.make())
    whole = unchecked(kind.make(), x, EVERY)
    moved = [
        float((whole - unchecked(kind.make(), x, without(record))).norm()) for record in REMOVED
    ]
    assert max(moved) > 1.5


@pytest.mark.parametrize("kind", IMPURE.values(), ids=IMPURE)
def test_power_the_refused_have_a_memory(kind: Kind) -> None:
    """Of every one of them: a buffer, a parameter or a gradient is another one after a question."""
    if kind.refused.startswith("BatchNorm1d|more"):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            unchecked(kind.make(), start(kind.make()), EVERY)
        return
    if kind.refused.startswith("BatchNorm2d") and kind.when == "maybe":
        pytest.skip("it has none: in a batch of one it is an InstanceNorm")
    task = kind.make()
    x = start(task)
    state = [value.clone() for value in task.net.buffers()] + [
        value.clone() for value in task.net.parameters()
    ]
    leaves = {name: value.clone().requires_grad_() for name, value in views(task.layout, x).items()}
    changed = False
    for row in (0, 1):
        example = tuple(column[row] for column in task.batch(EVERY))
        gradients = []
        for _ in range(5):
            single = torch.autograd.grad(
                task.loss(leaves, example), list(leaves.values()), materialize_grads=True
            )
            gradients.append(torch.cat([g.to_dense().reshape(-1) for g in single]))
        changed |= any(not a.equal(b) for a, b in itertools.pairwise(gradients))
    after = [*task.net.buffers(), *task.net.parameters()]
    kept = all(map(torch.equal, state, after)) and flat(task.layout, leaves).equal(x)
    assert changed or not kept


# Dropout: a seed for each record


@pytest.fixture
def dropout() -> Model:
    return RANDOM["Dropout"].make()


def moved_by_dropout(task: Model, seeds: Callable[[], Callable[[int], int]]) -> float:
    asked = [
        clipped_sum(task, start(task), rows, 1.0, backend="loop", seeds=seeds())
        for rows in (EVERY, without(0))
    ]
    return float((asked[0] - asked[1]).norm())


def test_a_seed_for_each_record_bounds_dropout(dropout: Model) -> None:
    assert moved_by_dropout(dropout, lambda: lambda row: 1000 + row) <= 1 + SLACK


def test_power_a_seed_for_each_place_does_not(dropout: Model) -> None:
    def by_place() -> Callable[[int], int]:
        places = itertools.count()
        return lambda row: next(places)

    assert moved_by_dropout(dropout, by_place) > 1.5


def test_power_one_seed_for_all_does_not(dropout: Model) -> None:
    x = start(dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = unchecked(dropout, x, EVERY)
        torch.manual_seed(0)
        less = unchecked(dropout, x, without(0))
    assert float((whole - less).norm()) > 1.5


def test_each_record_is_given_its_own_seed(dropout: Model) -> None:
    with torch.random.fork_rng(devices=[]):
        expected = unchecked(dropout, start(dropout), EVERY, lambda row: 7 * row)
    asked: set[int] = set()

    def seeds(row: int) -> int:
        asked.add(row)
        return 7 * row

    actual = clipped_sum(dropout, start(dropout), EVERY, 1.0, backend="loop", seeds=seeds)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert asked == set(EVERY.tolist())


def test_both_models_of_a_difference_have_the_same_mask(dropout: Model) -> None:
    x = start(dropout)
    assert not clipped_sum(dropout, x, EVERY, 1.0, before=x, backend="loop").any()


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_has_64_bits(dropout: Model, seed: int) -> None:
    assert clipped_sum(
        dropout, start(dropout), EVERY, 1.0, backend="loop", seeds=lambda row: seed
    ).any()


@pytest.mark.parametrize("name", RANDOM)
def test_what_a_task_seeds_does_not_matter(name: str) -> None:
    task = RANDOM[name].make()
    sums = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sums.append(question(task, "loop"))
    assert sums[0].equal(sums[1])


def test_different_records_have_different_masks_by_default() -> None:
    """Else every record's mask would be the same, which is no dropout."""
    task = RANDOM["Dropout"].make()
    for column in task.columns:
        column[:] = column[1].clone()
    each = torch.stack(
        [clipped_sum(task, start(task), row.view(1), 1.0, backend="loop") for row in EVERY]
    )
    assert len(each.unique(dim=0)) > RECORDS // 2


@pytest.mark.parametrize(
    "name", ["Dropout", "transformer with dropout", "seeded dropout", "plain", "ghost"]
)
def test_the_generator_outside_is_as_before(name: str) -> None:
    kind = BOUNDED[name]
    task = kind.make()
    before = torch.get_rng_state()
    backend = pick("auto", task, CHUNK)
    assert torch.get_rng_state().equal(before)
    question(task, backend)
    assert torch.get_rng_state().equal(before)


def released(task: Model, keys: Keys, seed: int = 0) -> list[Tensor]:
    """What a gate gives for the same model in two rounds, hardly noised, every record in the
    batch.
    """
    with torch.random.fork_rng(devices=[]), Ledger.in_memory() as ledger:
        torch.manual_seed(seed)
        options = {
            "config_backend": "auto",
            "config_rate": 1.0,
            "config_batch": RECORDS,
            "config_sigma": 1e-4,
        }
        strict = gate(task, ledger, keys, **options)
        return [strict(start(task), round, "b").double() * RECORDS for round in range(2)]


def test_the_door_draws_the_masks_from_its_secret_stream(dropout: Model) -> None:
    first, second = released(dropout, Keys.fresh())
    other, _ = released(dropout, Keys.fresh())
    plain, again = released(PURE["plain"].make(), Keys.fresh())
    assert float((plain - again).norm()) < 0.1, "the noise"
    assert float((first - second).norm()) > 1.0, "another round has other masks"
    assert float((first - other).norm()) > 1.0, "another key has other masks"


def test_the_door_takes_no_notice_of_torchs_seed(dropout: Model) -> None:
    here, there = (released(dropout, Keys.insecure(1, "a"), seed) for seed in (0, 1))
    assert all(a.equal(b) for a, b in zip(here, there, strict=True))


# After the start


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("running mean", "loop"),
        ("running mean, reassigned", "loop"),
        ("running mean, reassigned", "vmap"),
        ("counter in a buffer", "loop"),
        ("BatchNorm1d", "loop"),
        ("spectral_norm", "loop"),
        ("teacher", "loop"),
        ("running mean, by its data", "loop"),
    ],
)
def test_what_remembers_gives_no_sum(name: str, backend: Backend) -> None:
    """Nobody asked `pick`, or the layer began later."""
    kind = IMPURE[name]
    task = kind.make()
    with pytest.raises(ConfigurationError) as caught:
        clipped_sum(task, start(task), EVERY, 1.0, chunk=CHUNK, backend=backend)
    assert_a_sentence(caught.value, kind.refused)


def test_nothing_is_released_or_debited_then(ledger: Ledger) -> None:
    layer = Waking()
    task = Kind(lambda: torch.nn.Sequential(layer, torch.nn.Linear(6, 3))).make()
    releases: list[tuple[int, str]] = []
    options: dict[str, Any] = {
        "config_backend": "loop",
        "config_rate": 1.0,
        "config_batch": RECORDS,
    }
    strict = gate(task, ledger, on_release=lambda *what: releases.append(what), **options)
    for round in range(2):
        strict(start(task), round, "b")
    layer.awake = True
    with pytest.raises(ConfigurationError, match=r"'(net.)?0'|Waking"):
        strict(start(task), 2, "b")
    assert ledger.compositions == 2
    assert releases == [(0, "b"), (1, "b")]


# Records whose gradient is not finite


@pytest.mark.parametrize("backend", ["ghost", "vmap", "loop"])
def test_records_without_a_finite_gradient_are_counted(backend: Backend) -> None:
    task = PURE["ghost"].make()
    task.columns[0][[3, 17]] = float("nan")
    task.columns[0][20] = float("inf")
    rows = torch.cat([EVERY[EVERY != 4], EVERY[3:4]])  # one of them is asked for twice
    unusable: list[Tensor] = []
    total = clipped_sum(
        task, start(task), rows, 1.0, chunk=CHUNK, backend=backend, on_unusable=unusable.append
    )
    assert sorted(torch.cat(unusable).tolist()) == [3, 3, 17, 20]
    assert all(each.dtype == torch.int64 for each in unusable)
    good = torch.tensor([row for row in rows.tolist() if row not in (3, 17, 20)])
    torch.testing.assert_close(total, question(task, backend, good), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", ["ghost", "vmap", "loop"])
def test_nothing_is_counted_where_all_is_finite(backend: Backend) -> None:
    """The copies that fill a chunk up are nobody's."""
    task = PURE["ghost"].make()
    unusable: list[Tensor] = []
    clipped_sum(
        task, start(task), EVERY[:5], 1.0, chunk=CHUNK, backend=backend, on_unusable=unusable.append
    )
    assert sum(map(len, unusable)) == 0
    task.columns[0][0] = float("nan")
    clipped_sum(
        task, start(task), EVERY[:5], 1.0, chunk=CHUNK, backend=backend, on_unusable=unusable.append
    )
    assert torch.cat(unusable).tolist() == [0]


@pytest.mark.parametrize("backend", ["ghost", "vmap", "loop"])
def test_a_difference_counts_what_is_not_finite_at_one_of_the_models(backend: Backend) -> None:
    task = PURE["ghost"].make()
    task.columns[0][2] = float("nan")
    unusable: list[Tensor] = []
    clipped_sum(
        task,
        start(task),
        EVERY,
        1.0,
        before=start(task, 1.0),
        chunk=CHUNK,
        backend=backend,
        on_unusable=unusable.append,
    )
    assert sorted(set(torch.cat(unusable).tolist())) == [2]
