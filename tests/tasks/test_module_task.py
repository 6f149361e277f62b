"""`peerpoise.module_task`: models as people bring them, in a few lines each. Their gradients are
those of a plain loop over examples, and what was learned goes back into the plain module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from node.learning import promises
from node.maths import backends
from node.maths.clipping import clipped_sum
from node.maths.purity import Impure
from node.models.recurrent import unroll
from node.task import flat, views
from node.tasks.guard import guard
from peer.errors import ConfigurationError, DataError
from peerpoise import Metric, module_task

N = 24


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def numbers(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(below))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Embedded(nn.Module):
    """Numbers, and a category."""

    def __init__(self) -> None:
        super().__init__()
        self.ward = nn.Embedding(5, 4)
        self.layers = nn.Sequential(nn.Linear(6 + 4, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, vitals: Tensor, ward: Tensor) -> Tensor:
        return self.layers(torch.cat([vitals, self.ward(ward)], 1))


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.cells = kind(4, 5, batch_first=True, **options)
        self.head = nn.Linear(5 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(), nn.GroupNorm(2, 6), nn.AdaptiveAvgPool1d(1)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))


class Transformer(nn.Module):
    """Words with a mask: which of them are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        hidden = self.layer(self.words(words), src_key_padding_mask=padding)
        return self.head(hidden.masked_fill(padding[..., None], 0.0).sum(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        return self.head(torch.cat([high, self.up(self.deep(high))], 1))


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.words(words)))).transpose(1, 2)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(6, 5).requires_grad_(False)
        self.scale = nn.Buffer(torch.full((5,), 2.0))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)) * self.scale)


PADDING = torch.arange(5) >= 1 + numbers(5, N)[:, None]
MASKS = numbers(2, N, 8, 8).masked_fill(torch.rand(N, 8, 8) < 0.3, 255)
CLASSES = numbers(3, N)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    data: Any
    loss: Any = functional.cross_entropy
    backend: str = "vmap"
    more: dict[str, Any] = field(default_factory=dict)

    def examples(self) -> list[tuple[Any, Any]]:
        if isinstance(self.data, tuple):
            return [(self.data[0][k], self.data[1][k]) for k in range(N)]
        return [self.data[k] for k in range(N)]

    def losses(self, module: nn.Module) -> list[Tensor]:
        """Of each example, by the module as its author made it."""
        return [
            self.loss(called(module, inputs), torch.as_tensor(target)[None])
            for inputs, target in self.examples()
        ]


def segmentation(logits: Tensor, mask: Tensor) -> Tensor:
    return functional.cross_entropy(logits, mask, ignore_index=255)


CASES = {
    "mlp": Case(mlp, TensorDataset(drawn(N, 6), CLASSES), backend="ghost"),
    "mlp with embeddings": Case(
        Embedded, [((drawn(N, 6)[k], numbers(5, N)[k]), CLASSES[k]) for k in range(N)]
    ),
    "gru": Case(lambda: Recurrent(nn.GRU), (drawn(N, 7, 4), CLASSES)),
    "lstm": Case(lambda: Recurrent(nn.LSTM, bidirectional=True), (drawn(N, 7, 4), CLASSES)),
    "1-D CNN": Case(Convolved, (drawn(N, 4, 9).numpy(), CLASSES.numpy())),
    "transformer": Case(
        Transformer,
        [({"words": numbers(9, N, 5)[k], "padding": PADDING[k]}, CLASSES[k]) for k in range(N)],
    ),
    "U-Net": Case(UNet, (drawn(N, 1, 8, 8), MASKS), segmentation),
    "multi-label": Case(
        mlp,
        (drawn(N, 6), numbers(2, N, 3).float()),
        functional.binary_cross_entropy_with_logits,
        "ghost",
    ),
    "regression": Case(
        mlp,
        (drawn(N, 6), drawn(N, 3)),
        nn.MSELoss(),
        "ghost",
        {"metrics": {Metric("mae", "Mean distance."): functional.l1_loss}},
    ),
    "tied weights": Case(Tied, (numbers(9, N, 5), numbers(9, N, 5))),
    "frozen": Case(Frozen, (drawn(N, 6), CLASSES)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def made(case: Case, **more: Any) -> Any:
    return guard(module_task(case.build, case.data, case.loss, **case.more, **more), "own:make")


def plain(case: Case, task: Any, x: Tensor) -> nn.Module:
    """The module as its author made it, with what was learned; frozen parts as the task has them."""
    module = case.build()
    module.load_state_dict(task._task._model.state_dict(), strict=False)
    left = module.load_state_dict(views(task.layout, x), strict=False)
    assert not left.unexpected_keys
    return module


def called(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return module(**{name: part[None] for name, part in inputs.items()})
    if isinstance(inputs, tuple):
        return module(*(part[None] for part in inputs))
    return module(torch.as_tensor(inputs)[None])


def test_gradients_are_those_of_a_plain_loop(case: Case) -> None:
    task = made(case)
    x = promises.check(task, 3)
    assert torch.equal(x, task.initial_parameters(3))
    choice = backends.choose("auto", task)
    assert choice.backend == case.backend, choice.reason
    module = plain(case, task, x)
    parameters = dict(module.named_parameters())
    clip, expected = 0.5, torch.zeros(len(x), dtype=torch.float64)
    for loss in case.losses(module):
        module.zero_grad()
        loss.backward()
        g = flat(task.layout, {n: p.grad for n, p in parameters.items() if p.grad is not None})
        expected += g.double() * min(1.0, clip / float(g.norm()))
    sums = clipped_sum(task, x, torch.arange(N), clip, backend=choice.backend)
    assert torch.allclose(sums, expected, rtol=1e-4, atol=1e-5)


def test_it_learns_and_is_measured(case: Case) -> None:
    """A few steps of the mean gradient lower the loss; both are the plain module's."""
    task = made(case, test=case.data, validation=case.data)
    x = task.initial_parameters(1)
    before = task.evaluate(x)
    assert set(before) == {metric.name for metric in task.metrics}
    for _ in range(12):
        leaf = x.clone().requires_grad_()
        task.mean_loss(views(task.layout, leaf), task.batch(torch.arange(N))).backward()
        assert leaf.grad is not None
        x -= 0.1 * leaf.grad
    after = task.evaluate(x)
    assert after["loss"] < before["loss"]
    module = plain(case, task, x).eval()
    expected = torch.stack(case.losses(module)).mean().item()
    assert after["loss"] == pytest.approx(expected, rel=1e-5)
    assert task.validation.validate(views(task.layout, x), "neg_loss") == pytest.approx(
        -after["loss"], rel=1e-5
    )


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "num_layers": 2},
        {"bidirectional": True, "bias": False, "num_layers": 2},
    ],
    ids=["plain", "two layers", "both directions"],
)
def test_recurrent_layers_step_by_step_are_torchs(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer, x = kind(4, 5, **options), drawn(6, 3, 4)
    places = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    state: Any = drawn(places, 6 if options.get("batch_first") else 3, 5)
    state = (state, state * 0.5) if kind is nn.LSTM else state
    one: Any = tuple(part[:, 0] for part in state) if kind is nn.LSTM else state[:, 0]
    calls = [(x,), (x, state), (x[0], one)]
    expected = [layer(*each) for each in calls]
    names = list(layer.state_dict())
    unroll(layer)
    assert list(layer.state_dict()) == names
    for each, (outputs, last) in zip(calls, expected, strict=True):
        got, after = layer(*each)
        torch.testing.assert_close(got, outputs)
        torch.testing.assert_close(after, last)


def test_what_cant_be_computed_step_by_step_stays() -> None:
    for layer in (nn.LSTM(4, 5, proj_size=2), nn.GRU(4, 5, num_layers=2, dropout=0.1)):
        kind = type(layer)
        assert type(unroll(layer)) is kind


def test_a_module_itself_starts_as_it_is() -> None:
    torch.manual_seed(5)
    module = mlp()
    task = module_task(module, (drawn(N, 6), CLASSES), functional.cross_entropy)
    assert torch.equal(task.initial_parameters(1), task.initial_parameters(2))
    assert torch.equal(
        task.initial_parameters(1), flat(task.layout, dict(module.named_parameters()))
    )


def test_a_loss_that_counts_words_weighs_examples_alike() -> None:
    """torch averages over all words of a batch: an example with fewer would count for less."""
    task = made(CASES["U-Net"])
    x = task.initial_parameters(1)
    parameters, batch = views(task.layout, x), task.batch(torch.arange(N))
    each = [task.loss(parameters, tuple(leaf[k] for leaf in batch)) for k in range(N)]
    mean = task.mean_loss(parameters, batch)
    torch.testing.assert_close(mean, torch.stack(each).mean())
    outputs = plain(CASES["U-Net"], task, x)(batch[0])
    assert not torch.isclose(segmentation(outputs, batch[1]), mean, rtol=1e-5)


X, Y = drawn(N, 6), CLASSES
MISTAKES = {
    "an iterator": (iter([(X[0], Y[0])]), ConfigurationError, "make a list of it"),
    "one array": (X, ConfigurationError, "no pair (input, target)"),
    "nothing": ([], DataError, "no examples"),
    "lengths": (
        [(X[0], Y[0]), (X[0, :4], Y[1])],
        DataError,
        "example 1 has the shapes (4,), (), example 0 has (6,), ()",
    ),
    "rows": ((X, Y[:7]), DataError, "have 7, 24 rows"),
    "words": ([("fever", 1)], DataError, "something of type str"),
    "a number": ((3.0, Y), DataError, "a single number"),
    "forms": ([((X[0], X[1]), 1), ((X[0],), 1)], DataError, "pad them"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_data_of_another_form_are_one_sentence(mistake: str) -> None:
    data, kind, words = MISTAKES[mistake]
    with pytest.raises(kind) as raised:
        module_task(mlp, data, functional.cross_entropy)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_batch_normalization_is_refused() -> None:
    with pytest.raises(Impure, match="use GroupNorm"):
        module_task(
            lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
            (X, Y),
            functional.cross_entropy,
        )


def test_an_accuracy_is_asked_of_what_has_none() -> None:
    task: Any = module_task(mlp, (X, drawn(N, 3)), functional.mse_loss, validation=(X, X[:, :3]))
    with pytest.raises(ConfigurationError, match="neg_loss"):
        task.validate(views(task.layout, task.initial_parameters(1)), "accuracy")


def test_double_precision_and_small_integers_are_taken() -> None:
    data = (X.double().numpy(), Y.numpy().astype(np.uint8))
    task = guard(module_task(mlp, data, functional.cross_entropy), "own:make")
    x, y = task.batch(torch.tensor([0, 1]))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
