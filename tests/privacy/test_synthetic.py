"""A backend is chosen on made-up records that the task can take: lengths, masks, classes from 1,
logarithms and so on. Private values have no part in the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.zoo import (
    CLASSES,
    RECORDS,
    STEPS,
    TOKENS,
    Columns,
    Masked,
    Mean,
    Model,
    Packed,
    floats,
    labels,
    masked,
    sequences,
)
from node.maths import backends
from node.maths.backends import pick, probe
from node.maths.chunks import Backend
from node.maths.clipping import clipped_sum
from peer.errors import ConfigurationError

CHUNK = 16


class FromOne(Model):
    """The file has the classes 1, 2 and 3."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return super().mean_loss(parameters, (*batch[:-1], batch[-1] - 1))


class FromHundred(Model):
    """The file has the classes 100, 101 and 102."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return super().mean_loss(parameters, (*batch[:-1], batch[-1] - 100))


class Soft(Model):
    """A vote of several people: how many were for each class."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, votes = batch
        logits = torch.func.functional_call(self.net, dict(parameters), (x,))
        share = votes / votes.sum(1, keepdim=True)
        return -(share * logits.log_softmax(1)).sum(1).mean()


class Probability(Model):
    """The label is a probability."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, p = batch
        logits = torch.func.functional_call(self.net, dict(parameters), (x,)).mean(1)
        return ((logits - torch.logit(p)) ** 2).mean()


class Of(nn.Module):
    """A linear layer on a function of its inputs."""

    def __init__(self, prepared: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.prepared, self.out = prepared, nn.Linear(width, CLASSES)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.out(self.prepared(*inputs))


class OfTokens(nn.Module):
    """Embeddings of numbers that begin with `first`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.layers = (
            first,
            nn.Sequential(nn.Embedding(TOKENS, 4), Mean(), nn.Linear(4, CLASSES)),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(ids.int() - self.first)


class Table(nn.Module):
    """A constant table, indexed by a column."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(12.0).view(TOKENS + 2, 1).expand(-1, 4).cos())
        self.out = nn.Linear(4, CLASSES)

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.table[index])


def integers(
    low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64
) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(low, high, (RECORDS, *shape), generator=generator).to(
        dtype
    )


def with_labels(*columns: Callable[[torch.Generator], Tensor], first: int = 0) -> Columns:
    return lambda generator: (*(column(generator) for column in columns), labels(generator) + first)


def uniform(low: float, high: float, *shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: low + (high - low) * torch.rand(RECORDS, *shape, generator=generator)


def mean_of_first(x: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(STEPS) < lengths.unsqueeze(1)
    return (x * inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)


def mean_of_unpadded(x: Tensor, padding: Tensor) -> Tensor:
    kept = 1 - padding
    return (x * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True)


def mean_where(x: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask.unsqueeze(-1), x, 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True)


def mean_of_steps(x: Tensor, lengths: Tensor, padding: Tensor) -> Tensor:
    return mean_of_first(x, lengths) + mean_of_unpadded(x, padding)


def standardized(image: Tensor) -> Tensor:
    """To mean 0 and deviation 1: a picture of one color has none."""
    pixels = image.float().flatten(1)
    return (pixels - pixels.mean(1, keepdim=True)) / pixels.std(1, keepdim=True)


def boolean_mask(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, mask, y = masked(generator)
    return x, mask.bool(), y


def padded(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, mask, y = masked(generator)
    return x, 1 - mask, y


def lengths_and_padding(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, lengths, y = sequences(generator)
    return x, lengths, (torch.arange(STEPS) >= lengths.unsqueeze(1)).long(), y


def one_hot(generator: torch.Generator) -> tuple[Tensor, ...]:
    return functional.one_hot(torch.randint(0, 6, (RECORDS,), generator=generator), 6), labels(
        generator
    )


def votes(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, _ = floats(generator)
    return x, torch.randint(1, 9, (RECORDS, CLASSES), generator=generator)


def probabilities(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, _ = floats(generator)
    return x, 0.1 + 0.8 * torch.rand(RECORDS, generator=generator)


@dataclass(frozen=True)
class Values:
    build: Callable[[], nn.Module]
    columns: Columns
    backend: Backend = "vmap"
    task: type[Model] = Model
    example: tuple[Tensor, ...] = ()
    """Declared by the task where it is not empty."""

    def make(self, seed: int = 1) -> Model:
        task = self.task(self.build, self.columns)
        task.columns = self.columns(torch.Generator().manual_seed(seed))
        if self.example:
            setattr(task, "example", lambda: self.example)  # noqa: B010
        return task


def linear() -> nn.Module:
    return nn.Linear(6, CLASSES)


IMAGE = integers(0, 256, 1, 3, 2, dtype=torch.uint8)
WITH_VALUES: dict[str, Values] = {
    "lengths, packed": Values(Packed, sequences, "loop"),
    "lengths": Values(lambda: Of(mean_of_first, 3), sequences),
    "mask of integers": Values(Masked, masked),
    "mask of Booleans": Values(lambda: Of(mean_where, 3), boolean_mask),
    "padding of integers": Values(lambda: Of(mean_of_unpadded, 3), padded),
    "classes from 1": Values(linear, with_labels(uniform(-1, 1, 6), first=1), task=FromOne),
    "ids from 0": Values(lambda: OfTokens(0), with_labels(integers(0, TOKENS, STEPS))),
    "ids from 1": Values(lambda: OfTokens(1), with_labels(integers(1, TOKENS + 1, STEPS))),
    "ids of 32 bits": Values(
        lambda: OfTokens(1), with_labels(integers(1, TOKENS + 1, STEPS, dtype=torch.int32))
    ),
    "one-hot": Values(lambda: Of(lambda x: x / x.sum(1, keepdim=True), 6), one_hot),
    "votes": Values(linear, votes, task=Soft),
    "index": Values(Table, with_labels(integers(0, TOKENS))),
    "Booleans": Values(
        lambda: Of(Tensor.float, 6), with_labels(integers(0, 2, 6, dtype=torch.bool))
    ),
    "pixels": Values(lambda: Of(lambda x: x.float().flatten(1) / 255, 6), with_labels(IMAGE)),
    "lengths and padding": Values(lambda: Of(mean_of_steps, 3), lengths_and_padding),
    "standardized pixels": Values(lambda: Of(standardized, 6), with_labels(IMAGE)),
    "counts": Values(lambda: Of(lambda n: n.float().log(), 6), with_labels(integers(1, 100, 6))),
    "logarithm": Values(lambda: Of(torch.log, 6), with_labels(uniform(0.5, 9, 6))),
    "square root": Values(lambda: Of(torch.sqrt, 6), with_labels(uniform(0, 9, 6))),
    "probabilities": Values(lambda: Of(torch.logit, 6), with_labels(uniform(0.1, 0.9, 6))),
    "probability as the label": Values(linear, probabilities, task=Probability),
    "float64": Values(
        lambda: Of(Tensor.float, 6), with_labels(lambda g: uniform(0, 1, 6)(g).double())
    ),
}
DECLARED: dict[str, Values] = {
    "ids from 100": Values(
        lambda: OfTokens(100),
        with_labels(integers(100, 100 + TOKENS, STEPS)),
        example=(torch.tensor([100, 101, 102, 109]), torch.tensor(0)),
    ),
    "classes from 100": Values(
        linear,
        with_labels(uniform(-1, 1, 6), first=100),
        task=FromHundred,
        example=(torch.linspace(-1, 1, 6), torch.tensor(101)),
    ),
    "letters": Values(
        lambda: OfTokens(97),
        with_labels(integers(97, 97 + TOKENS, STEPS, dtype=torch.uint8)),
        example=(torch.tensor([97, 98, 100, 103], dtype=torch.uint8), torch.tensor(0)),
    ),
    "floats above 1": Values(
        lambda: Of(torch.acosh, 6),
        with_labels(uniform(1.5, 3, 6)),
        example=(torch.linspace(1.5, 3, 6), torch.tensor(2)),
    ),
}
"""Neither 1 nor 0 is what they can take, nor are floats that suit others."""
EVERY = {**WITH_VALUES, **DECLARED}


@pytest.mark.parametrize("name", EVERY)
def test_the_best_backend_is_taken(name: str) -> None:
    assert probe(EVERY[name].make(), CHUNK) == EVERY[name].backend


@pytest.mark.parametrize(
    "name", [name for name, values in EVERY.items() if values.backend == "vmap"]
)
def test_vmap_is_not_refused_for_a_false_reason(name: str) -> None:
    assert pick("vmap", EVERY[name].make(), CHUNK) == "vmap"


@pytest.mark.parametrize("name", WITH_VALUES)
def test_what_is_chosen_needs_no_declaration(name: str) -> None:
    choice = backends.choose("auto", WITH_VALUES[name].make(), CHUNK)
    assert "example()" not in choice.reason


@pytest.mark.parametrize("name", DECLARED)
def test_without_a_declaration_it_is_looped_and_says_what_to_do(name: str) -> None:
    task = replace(DECLARED[name], example=()).make()
    choice = backends.choose("auto", task, CHUNK)
    assert choice.backend == "loop"
    assert "example()" in choice.reason
    assert "\n" not in choice.reason
    assert (
        clipped_sum(task, task.initial_parameters(0), torch.arange(RECORDS), 1.0, backend="loop")
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("declared", [True, False])
def test_private_values_have_no_part_in_the_choice(name: str, declared: bool) -> None:
    values = EVERY[name] if declared else replace(EVERY[name], example=())
    here, there = (backends.choose("auto", values.make(seed), CHUNK) for seed in (1, 2))
    assert (here.backend, here.reason) == (there.backend, there.reason)


@pytest.mark.parametrize("name", ["mask of integers", "lengths", "one-hot", "counts"])
def test_private_values_that_are_all_bad_choose_the_same(name: str) -> None:
    """Power: tried on such records, nothing would be finite."""
    values = WITH_VALUES[name]
    task = values.make()
    for column in task.columns[:-1]:
        if not column.is_floating_point():
            column.zero_()
    assert probe(task, CHUNK) == probe(values.make(), CHUNK)


@pytest.mark.parametrize("name", EVERY)
def test_the_backends_agree(name: str) -> None:
    """The choice does not change what is learned."""
    task = EVERY[name].make()
    backend, rows = pick("auto", task, CHUNK), torch.arange(RECORDS)
    here, there = (
        clipped_sum(task, task.initial_parameters(0), rows, 1.0, chunk=CHUNK, backend=each)
        for each in (backend, "loop")
    )
    assert here.any()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "example",
    [
        (torch.zeros(STEPS + 1, dtype=torch.int64), torch.tensor(0)),
        (torch.zeros(STEPS), torch.tensor(0)),
        (torch.full((STEPS,), 100),),
        (torch.zeros(STEPS, dtype=torch.int64), torch.tensor(0)),
    ],
    ids=["another shape", "another type", "a column too few", "not admissible"],
)
def test_an_example_that_is_none_is_a_sentence(example: tuple[Tensor, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"example\(\)") as caught:
        probe(replace(DECLARED["ids from 100"], example=example).make(), CHUNK)
    assert "\n" not in str(caught.value)


# Some records have no finite loss: right values, chosen as ever, and counted


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["mask of integers", "mask of Booleans"])
def test_an_empty_mask_is_counted(name: str, backend: Backend) -> None:
    task = WITH_VALUES[name].make()
    _, mask, _ = task.columns
    mask[[2, 11]] = 0
    rows = torch.arange(RECORDS)
    unusable: list[Tensor] = []
    assert probe(task, CHUNK) == "vmap"
    x = task.initial_parameters(0)
    whole = clipped_sum(
        task, x, rows, 1.0, chunk=CHUNK, backend=backend, on_unusable=unusable.append
    )
    assert sorted(torch.cat(unusable).tolist()) == [2, 11]
    kept = rows[(rows != 2) & (rows != 11)]
    torch.testing.assert_close(whole, clipped_sum(task, x, kept, 1.0, chunk=CHUNK, backend=backend))
