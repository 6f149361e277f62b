"""What a task promises is tried before anything private is spent, and what is broken is one
sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from node import task as interface
from node import tasks
from node.config import RunConfig
from node.learning import promises
from node.maths.backends import probe
from node.maths.clipping import clipped_sum, mean_gradient
from node.task import flat
from node.tasks.guard import guard
from peer.errors import ConfigurationError
from peer.message import Layout

RECORDS = 40


def check(task: Any, seed: int = 0) -> None:
    promises.check(guard(task, "mine:make"), seed)


class Good:
    """Six floats, three classes. It keeps its promises."""

    def __init__(self, net: nn.Module | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net: Any = net or nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        self.layout: Any = Layout(
            tuple((name, tuple(p.shape)) for name, p in self.net.named_parameters())
        )
        self.x = torch.randn(RECORDS, 6, generator=generator)
        self.y = torch.randint(0, 3, (RECORDS,), generator=generator)

    @property
    def num_examples(self) -> int:
        return len(self.x)

    def initial_parameters(self, seed: int) -> Tensor:
        return flat(self.layout, dict(self.net.named_parameters()))

    def batch(self, rows: Tensor) -> Any:
        return self.x[rows], self.y[rows]

    def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.net, dict(parameters), (x,))

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Any:
        x, y = example
        return functional.cross_entropy(self.logits(parameters, x), y)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Any:
        x, y = batch
        return functional.cross_entropy(self.logits(parameters, x), y)

    def evaluate(
        self, x: Tensor, yield_point: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        return {}


def refused(task: Any, *words: str) -> None:
    """In one sentence that has all of the words."""
    with pytest.raises(ConfigurationError) as caught:
        check(task)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


def changed(**members: Any) -> Any:
    """A task as `Good` with other members."""
    return type("Changed", (Good,), members)()


def test_a_good_task_keeps_its_promises() -> None:
    check(Good())


def test_a_check_changes_nothing() -> None:
    task, state = Good(), torch.get_rng_state()
    x = task.initial_parameters(0)
    check(task)
    assert task.initial_parameters(0).equal(x)
    assert torch.get_rng_state().equal(state)
    assert all(p.grad is None for p in task.net.parameters())


# start


def test_a_start_that_differs_between_two_calls() -> None:
    refused(
        changed(initial_parameters=lambda self, seed: torch.randn(self.layout.size)),
        "initial_parameters",
    )


def test_a_start_that_moves_on() -> None:
    """The module's own parameters, drawn anew whatever the seed is."""

    def initial_parameters(self: Good, seed: int) -> Tensor:
        self.net[0].reset_parameters()
        return flat(self.layout, dict(self.net.named_parameters()))

    refused(changed(initial_parameters=initial_parameters), "initial_parameters")


def seeded(build: Callable[[Good], object]) -> Any:
    """A task that calls `build` in its `start`, with torch seeded."""

    def initial_parameters(self: Good, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            build(self)
            return flat(self.layout, dict(self.net.named_parameters()))

    return changed(initial_parameters=initial_parameters)


def test_a_start_that_draws_the_modules_own_parameters_anew() -> None:
    check(seeded(lambda task: (task.net[0].reset_parameters(), task.net[2].reset_parameters())))


def test_a_start_that_builds_a_spectral_norm() -> None:
    def build(task: Good) -> None:
        net = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 3)
        )
        net(torch.zeros(2, 6))

    check(seeded(build))


def test_a_start_that_fills_a_lazy_net_with_a_batch_normalization() -> None:
    """Used in evaluation mode later."""

    class Lazy(Good):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 3))
            shapes = [("0.weight", (4, 6)), ("0.bias", (4,)), ("1.weight", (4,)), ("1.bias", (4,))]
            self.layout = Layout((*shapes, ("2.weight", (3, 4)), ("2.bias", (3,))))

        def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
            return self.mean_loss(parameters, tuple(column.unsqueeze(0) for column in example))

        def initial_parameters(self, seed: int) -> Tensor:
            self.net.train()(torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)))
            self.net.eval()
            return torch.randn(self.layout.size, generator=torch.Generator().manual_seed(seed))

    check(Lazy())


def test_a_start_that_changes_what_it_holds_each_time_is_refused_all_the_same() -> None:
    refused(seeded(lambda task: task.net[0].bias.data.add_(1)), "initial_parameters", "again")


def test_a_start_that_goes_by_the_seed_is_right() -> None:
    def initial_parameters(self: Good, seed: int) -> Tensor:
        return torch.randn(self.layout.size, generator=torch.Generator().manual_seed(seed))

    task = changed(initial_parameters=initial_parameters)
    for seed in (0, 7):
        check(task, seed)


def test_a_start_that_seeds_torch_is_right() -> None:
    def initial_parameters(self: Good, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.randn(self.layout.size)

    with torch.random.fork_rng(devices=[]):
        check(changed(initial_parameters=initial_parameters))


STARTS = {
    "too short": lambda self, seed: torch.zeros(self.layout.size - 1),
    "with two dimensions": lambda self, seed: torch.zeros(1, self.layout.size),
    "integers": lambda self, seed: torch.zeros(self.layout.size, dtype=torch.int64),
    "complex": lambda self, seed: torch.zeros(self.layout.size, dtype=torch.complex64),
    "NaN": lambda self, seed: torch.full((self.layout.size,), float("nan")),
    "infinite": lambda self, seed: torch.full((self.layout.size,), float("inf")),
    "of numpy": lambda self, seed: np.zeros(self.layout.size, dtype=np.float32),
    "by name": lambda self, seed: dict(self.net.named_parameters()),
    "a list": lambda self, seed: [0.0] * self.layout.size,
    "sparse": lambda self, seed: torch.ones(self.layout.size).to_sparse(),
    "nested": lambda self, seed: torch.nested.nested_tensor([torch.zeros(self.layout.size)]),
    "nowhere": lambda self, seed: torch.zeros(self.layout.size, device="meta"),
    "nothing": lambda self, seed: None,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_start_that_is_no_vector_of_the_layout(start: Any) -> None:
    refused(changed(initial_parameters=start), "initial_parameters")


def test_a_start_in_bfloat16_is_right() -> None:
    check(
        changed(
            initial_parameters=lambda self, seed: torch.zeros(
                self.layout.size, dtype=torch.bfloat16
            )
        )
    )


# mean_loss and loss


class House(Good):
    """Regression with float labels."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 1))
        self.y = self.x @ torch.arange(6.0)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        x, y = example
        return functional.mse_loss(self.logits(parameters, x).squeeze(-1), y)

    mean_loss: Any = loss


class Careless(House):
    """Predictions [n, 1] against labels [n]."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return ((self.logits(parameters, x) - y) ** 2).mean()


class Idle(Careless):
    """It draws and uses nothing of it, which excuses no wrong mean."""

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        torch.rand(1)
        return super().loss(parameters, example)


class CarelessLabels(House):
    """Predictions [n] against labels [n, 1]."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return ((self.logits(parameters, x).squeeze(-1) - y.unsqueeze(-1)) ** 2).mean()


class Sum(Good):
    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return super().mean_loss(parameters, batch) * len(batch[0])


class FirstOnly(Good):
    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return super().mean_loss(parameters, tuple(column[:1] for column in batch))


class Coupled(Good):
    """Its layer subtracts the mean of the batch."""

    def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return super().logits(parameters, x - x.mean(0, keepdim=True) if x.dim() > 1 else x)


class Contrastive(Good):
    """Every record is compared with the others of its batch."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        z = self.logits(parameters, batch[0])
        return super().mean_loss(parameters, batch) - (z @ z.t()).log_softmax(1).diagonal().mean()


class Smoothed(Good):
    """`loss` has a term that `mean_loss` forgot."""

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return super().loss(parameters, example) + 0.01 * sum(
            p.square().sum() for p in parameters.values()
        )


class Weighted(Good):
    """Each record has a weight, a float; the mean of the batch divides by the sum of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.linspace(0.5, 2, RECORDS)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.x[rows], self.weight[rows], self.y[rows]

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        x, weight, y = example
        return weight * functional.cross_entropy(self.logits(parameters, x), y)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, weight, y = batch
        each = functional.cross_entropy(self.logits(parameters, x), y, reduction="none")
        return (weight * each).sum() / weight.sum()


class Tokens(Good):
    """Sequences of different length: the mean over the tokens of the batch is another one than that
    of the records.
    """

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)))
        self.x = torch.randint(0, 5, (RECORDS, 6), generator=torch.Generator().manual_seed(2))
        self.y = torch.arange(RECORDS) % 6 + 1  # lengths

    def each(
        self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        ids, lengths = batch
        logits = self.logits(parameters, ids[:, :-1]).transpose(1, 2)
        mask = torch.arange(5) < lengths.unsqueeze(1).clamp(max=5)
        return functional.cross_entropy(logits, ids[:, 1:], reduction="none") * mask, mask

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        losses, mask = self.each(parameters, tuple(column.unsqueeze(0) for column in example))
        return losses.sum() / mask.sum()

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        losses, mask = self.each(parameters, batch)
        return losses.sum() / mask.sum()


class ByRecord(Tokens):
    """The same, right."""

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        losses, mask = self.each(parameters, batch)
        return (losses.sum(1) / mask.sum(1)).mean()


class ClassWeights(Good):
    """torch divides by the sum of the weights of the batch's classes."""

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        x, y = example
        return functional.cross_entropy(
            self.logits(parameters, x), y, weight=torch.tensor([1.0, 5.0, 9.0])
        )

    mean_loss: Any = loss


@pytest.mark.parametrize(
    "kind",
    [
        Careless,
        Idle,
        CarelessLabels,
        Sum,
        FirstOnly,
        Coupled,
        Contrastive,
        Smoothed,
        Weighted,
        Tokens,
        ClassWeights,
    ],
)
def test_a_mean_loss_that_is_not_the_mean_of_the_loss(kind: type[Good]) -> None:
    refused(kind(), "mean_loss")


class Half(Good):
    def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        halves = {name: value.to(torch.bfloat16) for name, value in parameters.items()}
        return super().logits(halves, x.to(torch.bfloat16)).float()


class Double(Good):
    def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return super().logits(
            {name: value.double() for name, value in parameters.items()}, x.double()
        )


class Dropout(Good):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)))


class OwnDropout(Good):
    """Its generator is not the CPU's, as that of a GPU."""

    generator = torch.Generator().manual_seed(5)

    def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return super().logits(parameters, x * (torch.rand(x.shape, generator=self.generator) < 0.5))


def test_random_numbers_from_whichever_generator_have_no_mean_to_compare() -> None:
    check(OwnDropout())


class Large(Good):
    """Losses of a million, whose last bits differ."""

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return 1e6 * super().loss(parameters, example)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return 1e6 * super().mean_loss(parameters, batch)


class OneVector(Good):
    """A loss of shape [1]."""

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return super().loss(parameters, example).unsqueeze(0)


@pytest.mark.parametrize("kind", [Good, House, ByRecord, Half, Double, Dropout, Large, OneVector])
def test_equal_up_to_rounding_is_right(kind: type[Good]) -> None:
    task = guard(kind(), "mine:make")
    promises.check(task, 0)
    rows = torch.arange(RECORDS)
    total = clipped_sum(task, task.initial_parameters(0), rows, 1e9, backend=probe(task))
    mean = mean_gradient(task, task.initial_parameters(0), rows)
    assert mean.dtype == torch.float32
    if kind is not Dropout:
        tolerance = 0.05 if kind is Half else 1e-4
        torch.testing.assert_close(
            total.float() / RECORDS, mean, atol=tolerance * float(mean.norm()), rtol=tolerance
        )


# examples


EXAMPLES = {
    "none": 0,
    "negative": -1,
    "a float": 40.0,
    "text": "40",
    "nothing": None,
    "more than there are": RECORDS + 5,
    "a tensor with several": torch.tensor([40, 40]),
}


@pytest.mark.parametrize("number", EXAMPLES.values(), ids=EXAMPLES)
def test_a_number_of_examples_that_is_none(number: Any) -> None:
    refused(changed(num_examples=number), "num_examples")


def test_examples_without_a_property() -> None:
    refused(changed(num_examples=lambda self: len(self.x)), "num_examples", "property")


@pytest.mark.parametrize("number", [np.int64(RECORDS), np.int32(RECORDS), RECORDS - 1], ids=repr)
def test_whole_numbers_are_right(number: Any) -> None:
    check(changed(num_examples=number))


# batch


BATCHES = {
    "arrays of numpy": lambda self, rows: (self.x[rows].numpy(), self.y[rows].numpy()),
    "different lengths": lambda self, rows: (self.x[rows], self.y),
    "all rows, always": lambda self, rows: (self.x, self.y),
    "sparse": lambda self, rows: (self.x[rows].to_sparse(), self.y[rows]),
    "only the first row": lambda self, rows: (self.x[rows[:1]], self.y[rows[:1]]),
    "one tensor": lambda self, rows: self.x[rows],
    "by name": lambda self, rows: {"x": self.x[rows], "y": self.y[rows]},
    "lists": lambda self, rows: (self.x[rows].tolist(), self.y[rows].tolist()),
    "a number": lambda self, rows: (self.x[rows], torch.tensor(1)),
    "nested": lambda self, rows: ((self.x[rows], self.x[rows]), self.y[rows]),
    "nothing in it": lambda self, rows: (),
    "nothing": lambda self, rows: None,
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_batch_that_is_no_tuple_of_tensors(batch: Any) -> None:
    refused(changed(batch=batch), "batch")


def test_a_list_of_tensors_is_right() -> None:
    task = guard(changed(batch=lambda self, rows: [self.x[rows], self.y[rows]]), "mine:make")
    promises.check(task, 0)
    rows = torch.arange(RECORDS)
    good = guard(Good(), "mine:make")
    total = clipped_sum(task, task.initial_parameters(0), rows, 1.0, backend=probe(task))
    assert total.equal(
        clipped_sum(good, good.initial_parameters(0), rows, 1.0, backend=probe(good))
    )


# loss


LOSSES = {
    "a float": lambda self, parameters, example: Good.loss(self, parameters, example).item(),
    "detached": lambda self, parameters, example: Good.loss(self, parameters, example).detach(),
    "a constant": lambda self, parameters, example: torch.tensor(1.0),
    "of numpy": lambda self, parameters, example: (
        Good.loss(self, parameters, example).detach().numpy()
    ),
    "a vector": lambda self, parameters, example: self.logits(parameters, example[0]),
    "integers": lambda self, parameters, example: torch.tensor(1),
    "complex": lambda self, parameters, example: Good.loss(self, parameters, example) * 1j,
    "a tuple": lambda self, parameters, example: (Good.loss(self, parameters, example), 1.0),
    "nothing": lambda self, parameters, example: None,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_scalar_with_a_gradient(loss: Any) -> None:
    refused(changed(loss=loss), "loss")


MEAN_LOSSES = {
    **{name: loss for name, loss in LOSSES.items() if name != "a vector"},
    "one for each": lambda self, parameters, batch: functional.cross_entropy(
        self.logits(parameters, batch[0]), batch[1], reduction="none"
    ),
}


@pytest.mark.parametrize("mean_loss", MEAN_LOSSES.values(), ids=MEAN_LOSSES)
def test_a_mean_loss_that_is_no_scalar_with_a_gradient(mean_loss: Any) -> None:
    refused(changed(mean_loss=mean_loss), "mean_loss")


def test_a_loss_without_gradients_for_some_parameters_is_right() -> None:
    class Unused(Good):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(2, 2)}))

        def logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return functional.linear(x, parameters["used.weight"], parameters["used.bias"])

    check(Unused())


@pytest.mark.parametrize("method", ["initial_parameters", "batch", "loss", "mean_loss"])
def test_an_exception_in_the_tasks_code_names_the_method(method: str) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("ward_7")

    refused(changed(**{method: fails}), method, "KeyError", "test_promises.py")


# layout


LAYOUTS = {
    "a list": [("0.weight", (4, 6)), ("0.bias", (4,)), ("2.weight", (3, 4)), ("2.bias", (3,))],
    "by name": {"0.weight": (4, 6), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)},
    "pairs": (("0.weight", (4, 6)), ("0.bias", (4,)), ("2.weight", (3, 4)), ("2.bias", (3,))),
    "a name twice": Layout(
        (("0.weight", (4, 6)), ("0.weight", (4,)), ("2.weight", (3, 4)), ("2.bias", (3,)))
    ),
    "numbers for shapes": Layout(
        (("0.weight", 24), ("0.bias", 4), ("2.weight", 12), ("2.bias", 3))  # type: ignore[arg-type]
    ),
    "negative": Layout((("0.weight", (-1, 6)), ("0.bias", (4,)))),
    "names that are none": Layout(((0, (4, 6)), (1, (4,)))),  # type: ignore[arg-type]
    "empty": Layout(()),
    "nothing in it": Layout((("0.weight", (0, 6)),)),
    "nothing in one of them": Layout(
        (("0.weight", (4, 6)), ("0.bias", (4,)), ("2.weight", (5, 3)), ("2.bias", (0,)))
    ),
    "nothing": None,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_that_is_none(layout: Any) -> None:
    task = Good()
    task.layout = layout
    task.initial_parameters = lambda seed: torch.zeros(43)  # type: ignore[method-assign]
    refused(task, "layout")


def test_shapes_of_torch_are_right() -> None:
    task = Good()
    task.layout = Layout(tuple((name, p.shape) for name, p in task.net.named_parameters()))
    check(task)


def frozen() -> Any:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    return net


def test_a_frozen_parameter_in_the_layout() -> None:
    refused(Good(frozen()), "0.weight", "layout_of")


class Distilled(Good):
    """A frozen teacher beside a student with the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).requires_grad_(
            False
        )


class DistilledFirst(Distilled):
    """The teacher is met first."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.teacher = self.__dict__.pop("net"), self.__dict__.pop("teacher")
        self.__dict__ = {"teacher": self.teacher, **self.__dict__}


@pytest.mark.parametrize("kind", [Distilled, DistilledFirst])
def test_a_frozen_teacher_with_the_names_of_its_student_is_right(kind: type[Good]) -> None:
    check(kind())


def test_a_frozen_student_with_a_frozen_teacher() -> None:
    task = Distilled()
    task.net[0].requires_grad_(False)
    refused(task, "0.weight", "layout_of")


def test_a_frozen_parameter_below_another_name() -> None:
    """One of many, deep in the model."""
    norm = nn.LayerNorm(4)
    norm.bias.requires_grad_(False)
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 4), norm), nn.Linear(4, 3))
    refused(Good(net), "0.1.bias", "layout_of")


def test_the_layout_of_what_asks_for_gradients() -> None:
    net = frozen()
    assert interface.layout_of(net) == Layout((("2.weight", (3, 4)), ("2.bias", (3,))))
    assert interface.layout_of(nn.Linear(6, 1)).fields == (("weight", (1, 6)), ("bias", (1,)))
    good = Good(net)
    good.layout = interface.layout_of(net)
    task = guard(good, "mine:make")
    promises.check(task, 0)
    before = net[0].weight.clone()
    assert len(mean_gradient(task, task.initial_parameters(0), torch.arange(RECORDS))) == 15
    assert net[0].weight.equal(before)


def test_the_layout_of_tied_parameters_has_them_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert [name for name, _ in interface.layout_of(net).fields] == ["0.weight", "0.bias", "1.bias"]


def test_complex_parameters() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 6, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(self.w.dtype) @ self.w.t()).abs()

    task = Good(Spectrum())
    task.initial_parameters = lambda seed: torch.ones(18)  # type: ignore[method-assign]
    refused(task, "w", "complex")


# example, inputs, device


EXAMPLES_GIVEN = {
    "nothing": None,
    "a tensor": torch.zeros(6),
    "arrays": (np.zeros(6), np.int64(1)),
    "by name": {"x": torch.zeros(6), "y": torch.tensor(1)},
    "anything": Mock(),
    "other shapes": (torch.zeros(5), torch.tensor(1)),
    "empty": (),
}


@pytest.mark.parametrize("example", EXAMPLES_GIVEN.values(), ids=EXAMPLES_GIVEN)
def test_an_example_that_is_no_tuple_of_tensors(example: Any) -> None:
    refused(changed(example=lambda self: example), "example()")


@pytest.mark.parametrize("example", [None, 3, (torch.zeros(6), torch.tensor(1))], ids=str)
def test_an_example_that_is_no_function_declares_nothing(example: Any) -> None:
    check(changed(example=example))


@pytest.mark.parametrize(
    "example", [(torch.zeros(6), torch.tensor(1)), [torch.zeros(6), torch.tensor(1)]], ids=str
)
def test_an_example_of_tensors_is_right(example: Any) -> None:
    check(changed(example=lambda self: example))


INPUTS = {
    "a list": ["age", "dose"],
    "nothing": None,
    "text": "age",
    "a number": {"width": 28},
    "a set": {"columns": {"age"}},
    "a tensor": {"mean": torch.zeros(3)},
    "a number for a name": {1: "age"},
    "half a character": {"unit": "\ud800"},
    "half a character in a name": {"\udfff": "mg"},
    "too long": {"columns": "a" * 4097},
    "a name too long": {"a" * 4097: "age"},
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_inputs_that_are_no_names_and_words(inputs: Any) -> None:
    refused(changed(inputs=inputs), "inputs", "dict")


@pytest.mark.parametrize(
    "inputs", [{}, {"unit": "mg/l", "µ": "\U0001f40b" * 4096}, MappingProxyType({"a": ""})], ids=len
)
def test_inputs_of_names_and_words_are_right(inputs: Any) -> None:
    check(changed(inputs=inputs))


@pytest.mark.parametrize("device", ["cpu", None, torch.device("cpu")], ids=str)
def test_a_device_by_name_is_right(device: Any) -> None:
    check(changed(device=device))


@pytest.mark.parametrize("device", ["meta", "cuda:77", "gpu", 0], ids=str)
def test_a_device_that_computes_nothing_here(device: Any) -> None:
    refused(changed(device=device), "device")


# Sparse gradients


def of_embeddings(sparse: bool) -> Good:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = Good(
            nn.Sequential(nn.EmbeddingBag(9, 4, sparse=sparse, mode="sum"), nn.Linear(4, 3))
        )
    task.x = torch.randint(0, 9, (RECORDS, 5), generator=torch.Generator().manual_seed(3))
    task.loss = lambda parameters, example: task.mean_loss(  # type: ignore[method-assign]
        parameters, tuple(column.unsqueeze(0) for column in example)
    )
    return task


def test_sparse_gradients_give_the_same_sums_as_dense_ones() -> None:
    sparse, dense = (guard(of_embeddings(kind), "mine:make") for kind in (True, False))
    promises.check(sparse, 0)
    rows, x = torch.arange(RECORDS), dense.initial_parameters(0)
    expected = clipped_sum(dense, x, rows, 0.5, backend="loop")
    assert clipped_sum(sparse, x, rows, 0.5, backend="loop").equal(expected)
    torch.testing.assert_close(
        clipped_sum(sparse, x, rows, 0.5, backend=probe(sparse)), expected, atol=1e-6, rtol=1e-5
    )
    mean = mean_gradient(dense, x, rows)
    assert mean.any()
    torch.testing.assert_close(mean_gradient(sparse, x, rows), mean, atol=1e-6, rtol=1e-5)


# Switches of torch that hold for the whole process


SWITCHES: dict[str, tuple[str, Callable[[], object]]] = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "default device": ('torch.set_default_device("meta")', torch.get_default_device),
    "gradients": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "deterministic": (
        "torch.use_deterministic_algorithms(True)",
        torch.are_deterministic_algorithms_enabled,
    ),
    "matmul precision": (
        'torch.set_float32_matmul_precision("medium")',
        torch.get_float32_matmul_precision,
    ),
    "anomalies": ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled),
}
"""What is changed -> code that changes it, and what shows it."""


@pytest.fixture
def as_before() -> Iterator[None]:
    """The switches of torch, restored after the test."""
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
    torch.autograd.set_detect_anomaly(False)


NUMBERS = itertools.count()
MODULE = """
import torch
{on_import}
from test_promises import Good

def make(run, data):
    {in_function}
    return task
"""


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("when", ["on import", "in its function", "after the task was made"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_torch_that_a_task_changes(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, shown = SWITCHES[name]
    inside = {"on import": "task = Good()", "in its function": f"{code}; task = Good()"}
    text = MODULE.format(
        on_import=code if when == "on import" else "",
        in_function=inside.get(when, f"task = Good(); {code}"),
    )
    module = f"switching{next(NUMBERS)}"
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = shown()
    run = RunConfig.model_validate(
        {"privacy": {"mode": "none"}, "task": {"name": f"{module}:make"}}
    )
    with pytest.raises(ConfigurationError) as caught:
        check(tasks.make(run, np.arange(5)))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "torch" in sentence
    assert module in sentence or "task" in sentence
    assert shown() == before, "it is put back"


@pytest.mark.usefixtures("as_before")
def test_a_task_that_leaves_torch_alone_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that changes a switch and puts it back."""
    module = f"switching{next(NUMBERS)}"
    text = MODULE.format(
        on_import="torch.set_default_dtype(torch.float64); torch.set_default_dtype(torch.float32)",
        in_function="with torch.no_grad(): task = Good()",
    )
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run = RunConfig.model_validate(
        {"privacy": {"mode": "none"}, "task": {"name": f"{module}:make"}}
    )
    promises.check(tasks.make(run, np.arange(5)), 0)
