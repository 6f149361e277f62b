"""Models as people bring them, each as a task: those whose loss is a pure function of (parameters,
example), up to the dropout of torch's own generator, and those that remember, count or roll dice of
their own."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from node.hooks import no_op
from node.maths import ghost
from node.task import Factored, Task, flat
from peer.message import Layout

RECORDS = 24
FEATURES = 6
CLASSES = 3
TOKENS = 10
STEPS = 4


Columns = Callable[[torch.Generator], tuple[Tensor, ...]]
"""Made-up records, column by column; the labels come last."""


class Model(Task):
    """A module in training mode on made-up records, the first of them as a broken sensor gives
    it.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        columns: Callable[[torch.Generator], tuple[Tensor, ...]],
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = build().train()
        self.columns = columns(torch.Generator().manual_seed(1))
        self.num_examples = len(self.columns[0])
        self.parameters = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        self.layout = Layout(tuple((name, tuple(p.shape)) for name, p in self.parameters.items()))

    def initial_parameters(self, seed: int) -> Tensor:
        return flat(self.layout, self.parameters)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(column[rows] for column in self.columns)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self.mean_loss(parameters, tuple(column.unsqueeze(0) for column in example))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        *inputs, labels = batch
        logits = functional_call(self.net, dict(parameters), tuple(inputs))
        return functional.cross_entropy(logits.float(), labels)

    def factors(self) -> Factored | None:
        if not ghost.is_linear(self.net, list(self.parameters)):
            return None
        return lambda parameters, batch: ghost.factors(
            self.net,
            parameters,
            batch[0],
            lambda z: functional.cross_entropy(z, batch[1], reduction="sum"),
        )

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        return {}


def labels(generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (RECORDS,), generator=generator)


def floats(generator: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.randn(RECORDS, FEATURES, generator=generator)
    x[0] = 1e4
    return x, labels(generator)


def tokens(generator: torch.Generator) -> tuple[Tensor, ...]:
    ids = torch.randint(0, TOKENS, (RECORDS, STEPS), generator=generator)
    ids[0] = TOKENS - 1
    return ids, labels(generator)


def sequences(generator: torch.Generator) -> tuple[Tensor, ...]:
    """With lengths of 1 and more."""
    x = torch.randn(RECORDS, STEPS, 3, generator=generator)
    x[0] = 1e4
    return x, torch.randint(1, STEPS + 1, (RECORDS,), generator=generator), labels(generator)


def masked(generator: torch.Generator) -> tuple[Tensor, ...]:
    """With masks of 0 and 1 that are never empty."""
    x, lengths, y = sequences(generator)
    return x, (torch.arange(STEPS) < lengths.unsqueeze(1)).long(), y


def softly_masked(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, mask, y = masked(generator)
    return x, mask.float(), y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.again(torch.tanh(self.up(x)))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.unused = nn.Linear(6, 3), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.out = nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.backbone(x)))


class Recurrent(nn.Module):
    """The last output of an LSTM or GRU."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.recurrent = kind(2, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0][:, -1]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])


class Attention(nn.Module):
    """Self-attention, with a causal mask that is a buffer and never changes."""

    def __init__(self, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.register_buffer(
            "mask", torch.ones(3, 3).triu(1).bool() if causal else None, persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]


class Masked(nn.Module):
    """The mean over the steps that were measured."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.up(x)) * mask.unsqueeze(-1)
        return self.out(h.sum(1) / mask.sum(1, keepdim=True))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class TiedTokens(nn.Module):
    """Scores every token by the embeddings, which a look-up scales down to norm 1 in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(TOKENS, 4, max_norm=0.5), nn.Linear(TOKENS, 3)

    def forward(self, ids: Tensor) -> Tensor:
        before = self.embedding.weight.sum(0)
        return self.out((self.embedding(ids).mean(1) + before) @ self.embedding.weight.t())


class Square(torch.autograd.Function):
    """In the old style, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 1
        h += 0.1
        h[..., 0] = 0
        return h.relu_()


class Complex(nn.Module):
    """Complex between real parameters and a real loss."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.complex(x, x.sin())).abs()


class Cast(nn.Module):
    """A linear layer that computes in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.dtype = nn.Linear(6, 8), dtype

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.dtype), self.linear.weight.to(self.dtype)).float()


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x).float()


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(x) if x.sum().item() > 0 else self.minus(x)


class Positions(nn.Module):
    """A table that is made at the first use of a length: a cache that does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        if length not in self.tables:
            self.tables[length] = torch.arange(length) / length
        return x + self.tables[length]


class Checkpointed(nn.Module):
    """Computed once more in backward, with the same dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Gumbel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.gumbel_softmax(x)


class Seeded(nn.Module):
    """Seeds torch itself: the same mask for every record."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return functional.dropout(x, 0.5)


def counted_calls(layer: nn.Module) -> nn.Module:
    """A hook that counts, for nobody."""
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return layer


class Moving(nn.Module):
    """Subtracts a running mean, kept in a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean


class Reassigned(Moving):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Hidden(Moving):
    """The buffer is written through its storage, which leaves its version as it was."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Remembering(nn.Module):
    """A running mean in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Caching(nn.Module):
    """What it saw last, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {"last": torch.zeros(FEATURES)}

    def forward(self, x: Tensor) -> Tensor:
        before, self.cache["last"] = self.cache["last"], x.detach().mean(0)
        return x - before


class Closure(nn.Module):
    """A running mean that no attribute shows."""

    def __init__(self) -> None:
        super().__init__()
        mean = torch.zeros(FEATURES)

        def centered(x: Tensor) -> Tensor:
            mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            return x - mean

        self.centered = centered

    def forward(self, x: Tensor) -> Tensor:
        return self.centered(x)


class Annealed(nn.Module):
    """A temperature that falls with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / (1 + 1 / self.calls)


class Steps(nn.Module):
    """A counter in a buffer, as BatchNorm has it, that nothing depends on."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator)


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(np.random.standard_normal())


class NumpyGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + float(self.random.standard_normal())


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + random.gauss(0.0, 1.0)


class SkippedLayer(nn.Module):
    """Stochastic depth: Python's dice decide whether the layer is there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dice = nn.Linear(8, 8), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.dice.random() < 0.5 else x


class Quantile(nn.Module):
    """Scales by a moving quantile."""

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.level.lerp_(x.detach().abs().flatten().quantile(0.9), 0.1)
        return x / self.level


class Observer(nn.Module):
    """Rounds to 8 bits over the range seen so far, as in quantization-aware training."""

    top: Tensor

    def __init__(self, least: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(least))

    def forward(self, x: Tensor) -> Tensor:
        self.top.copy_(torch.maximum(self.top, x.detach().abs().max()))
        step = self.top / 127
        return x + ((x / step).round() * step - x).detach()


class Codebook(nn.Module):
    """Vector quantization with a codebook that follows what it sees."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        chosen = self.codes[nearest]
        self.codes[nearest] = 0.5 * chosen + 0.5 * x.detach()
        return x + (chosen - x).detach()


class Waking(nn.Module):
    """Follows its inputs once it is awake."""

    mean: Tensor

    def __init__(self, awake: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.awake = awake

    def forward(self, x: Tensor) -> Tensor:
        if self.awake:
            self.mean.add_(0.1 * x.detach().mean(0))
        return x - self.mean


class ActNorm(nn.Module):
    """Takes its scale from the first record that it sees."""

    ready: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.scale.copy_(x.detach().abs().mean())
            self.ready.fill_(True)
        return x / self.scale


class Stateful(nn.Module):
    """A recurrent layer that goes on where the record before ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.state = nn.GRUCell(6, 8), torch.zeros(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x, self.state.expand(len(x), -1))
        self.state = h.detach().mean(0, keepdim=True)
        return h


class Queue(nn.Module):
    """Compares with the records seen last."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        near = x @ self.queue.t()
        self.queue = torch.cat([x.detach(), self.queue])[:4]
        return torch.cat([near, x[:, :4]], 1)


class Teacher(nn.Module):
    """A frozen copy that follows the layer, updated in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.teacher.bias.data.add_(0.1 * x.detach().mean(0))
        return self.student(x) + self.teacher(x)


class Faded(torch.autograd.Function):
    """A gradient that depends on how often backward was called."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        Faded.calls += 1
        return g * (Faded.calls % 7 - 3)


class Backward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Faded.apply(x)


class Fading(Model):
    """A counter in the loss itself, outside of any layer."""

    calls = 0

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        self.calls += 1
        return super().mean_loss(parameters, batch) * (self.calls % 7 - 3)


class Centered(Model):
    """Subtracts a running mean of its own, outside of any layer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mean = torch.zeros(FEATURES)

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().mean_loss(parameters, (x - self.mean, y))


def counting_hook(layer: nn.Module) -> nn.Module:
    """Scales what the layer gives by the number of its calls."""
    calls: list[int] = []

    def scaled(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls.append(1)
        return output * (len(calls) % 7 - 3)

    layer.register_forward_hook(scaled)
    return layer


def mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), *between, nn.Linear(8, CLASSES))


def on_inputs(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Linear(FEATURES, CLASSES))


def shaped(shape: tuple[int, ...], *layers: nn.Module, width: int) -> nn.Module:
    """The six floats as another shape, through the layers; they give `width` numbers."""
    return nn.Sequential(nn.Unflatten(1, shape), *layers, nn.Flatten(), nn.Linear(width, CLASSES))


def of_tokens(embedding: nn.Module) -> nn.Module:
    pooled = (
        embedding if isinstance(embedding, nn.EmbeddingBag) else nn.Sequential(embedding, Mean())
    )
    return nn.Sequential(pooled, nn.Linear(4, CLASSES))


def initialized(module: nn.Module) -> nn.Module:
    """A lazy module after its first forward."""
    module(torch.zeros(1, FEATURES))
    return module


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def quietly(function: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """torch calls it deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


@dataclass(frozen=True)
class Kind:
    build: Callable[[], nn.Module]
    columns: Columns = floats
    refused: str = ""
    """What the sentence has to match; empty: one record moves the sum by C at most."""
    when: str = "start"
    """Refused at the start; "asked": when a record shows it; "maybe": at the start, or else it is
    bounded.
    """
    task: type[Model] = Model

    def make(self) -> Model:
        return self.task(self.build, self.columns)


PURE: dict[str, Kind] = {
    "plain": Kind(lambda: mlp(nn.ReLU())),
    "ghost": Kind(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))),
    "tied": Kind(Tied),
    "unused": Kind(Unused),
    "frozen": Kind(Frozen),
    "pruned": Kind(pruned),
    "weight_norm": Kind(lambda: on_inputs(parametrizations.weight_norm(nn.Linear(6, 6)))),
    "weight_norm by hook": Kind(lambda: on_inputs(quietly(nn.utils.weight_norm, nn.Linear(6, 6)))),
    "GroupNorm": Kind(lambda: mlp(nn.GroupNorm(2, 8))),
    "LayerNorm": Kind(lambda: mlp(nn.LayerNorm(8))),
    "RMSNorm": Kind(lambda: mlp(nn.RMSNorm(8))),
    "InstanceNorm": Kind(lambda: shaped((2, 3), nn.InstanceNorm1d(2, affine=True), width=6)),
    "Conv1d": Kind(lambda: shaped((2, 3), nn.Conv1d(2, 4, 2), nn.Tanh(), width=8)),
    "Conv2d": Kind(lambda: shaped((1, 2, 3), nn.Conv2d(1, 4, 2), nn.Tanh(), width=8)),
    "ConvTranspose2d": Kind(
        lambda: shaped((1, 2, 3), nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), width=24)
    ),
    "LSTM": Kind(lambda: shaped((3, 2), Recurrent(nn.LSTM), width=4)),
    "GRU": Kind(lambda: shaped((3, 2), Recurrent(nn.GRU), width=4)),
    "packed": Kind(Packed, sequences),
    "attention": Kind(lambda: shaped((3, 2), nn.Linear(2, 4), Attention(), width=12)),
    "causal mask": Kind(lambda: shaped((3, 2), nn.Linear(2, 4), Attention(causal=True), width=12)),
    "transformer": Kind(
        lambda: shaped(
            (3, 2),
            nn.Linear(2, 4),
            nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
            width=12,
        )
    ),
    "mask of integers": Kind(Masked, masked),
    "mask of floats": Kind(Masked, softly_masked),
    "Embedding": Kind(lambda: of_tokens(nn.Embedding(TOKENS, 4)), tokens),
    "Embedding, sparse": Kind(lambda: of_tokens(nn.Embedding(TOKENS, 4, sparse=True)), tokens),
    "Embedding, padded": Kind(lambda: of_tokens(nn.Embedding(TOKENS, 4, padding_idx=0)), tokens),
    "EmbeddingBag": Kind(lambda: of_tokens(nn.EmbeddingBag(TOKENS, 4)), tokens),
    "lazy": Kind(lambda: initialized(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)))),
    "custom": Kind(lambda: mlp(Custom())),
    "in place": Kind(lambda: mlp(InPlace())),
    "complex": Kind(lambda: mlp(Complex())),
    "bfloat16": Kind(lambda: nn.Sequential(Cast(torch.bfloat16), nn.Linear(8, 3))),
    "float64": Kind(lambda: nn.Sequential(Cast(torch.float64), nn.Linear(8, 3))),
    "autocast": Kind(lambda: nn.Sequential(Autocast(), nn.Tanh(), nn.Linear(8, 3))),
    "branch": Kind(Branch),
    "positions": Kind(lambda: on_inputs(Positions())),
    "hook that counts": Kind(lambda: mlp(counted_calls(nn.Tanh()))),
    "seeded dropout": Kind(lambda: mlp(Seeded())),
}

RANDOM: dict[str, Kind] = {
    "Dropout": Kind(lambda: mlp(nn.Dropout(0.5))),
    "Dropout, ghost": Kind(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    ),
    "Dropout2d": Kind(lambda: shaped((3, 2, 1), nn.Dropout2d(0.5), width=6)),
    "AlphaDropout": Kind(lambda: mlp(nn.AlphaDropout(0.5))),
    "functional dropout": Kind(lambda: mlp(FunctionalDropout())),
    "RReLU": Kind(lambda: mlp(nn.RReLU())),
    "jitter": Kind(lambda: mlp(Jitter())),
    "gumbel": Kind(lambda: mlp(Gumbel())),
    "LSTM with dropout": Kind(
        lambda: shaped((3, 2), Recurrent(nn.LSTM, num_layers=2, dropout=0.5), width=4)
    ),
    "attention with dropout": Kind(
        lambda: shaped((3, 2), nn.Linear(2, 4), Attention(dropout=0.5), width=12)
    ),
    "transformer with dropout": Kind(
        lambda: shaped(
            (3, 2),
            nn.Linear(2, 4),
            nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True),
            width=12,
        )
    ),
    "checkpointed": Kind(lambda: mlp(Checkpointed())),
}
"""The dice are torch's own: bounded where each record has a seed."""

IMPURE: dict[str, Kind] = {
    "running mean": Kind(lambda: on_inputs(Moving()), refused="'(net.)?0'|Moving"),
    "running mean, reassigned": Kind(
        lambda: on_inputs(Reassigned()), refused="'(net.)?0'|Reassigned"
    ),
    "running mean, by its data": Kind(lambda: on_inputs(Hidden()), refused="'(net.)?0'|Hidden"),
    "running mean, no buffer": Kind(
        lambda: on_inputs(Remembering()), refused="'(net.)?0'|Remembering"
    ),
    "running mean in a closure": Kind(lambda: on_inputs(Closure()), refused="'(net.)?0'|Closure"),
    "running mean in the task": Kind(
        lambda: nn.Linear(6, 3), refused="loss|Centered|mean", task=Centered
    ),
    "cache": Kind(lambda: on_inputs(Caching()), refused="'(net.)?0'|Caching"),
    "counter": Kind(lambda: mlp(Annealed()), refused="'(net.)?1'|Annealed"),
    "counter in a buffer": Kind(lambda: mlp(Steps()), refused="'(net.)?1'|Steps"),
    "counter in a hook": Kind(lambda: mlp(counting_hook(nn.Tanh())), refused="'(net.)?1'|Tanh"),
    "counter in the task": Kind(lambda: mlp(nn.Tanh()), refused="loss|Fading", task=Fading),
    "counter in backward": Kind(
        lambda: mlp(Backward()), refused="loss|gradient|'(net.)?1'|Backward"
    ),
    "own generator": Kind(lambda: mlp(OwnNoise()), refused="'(net.)?1'|OwnNoise"),
    "noise of numpy": Kind(lambda: mlp(NumpyNoise()), refused="'(net.)?1'|NumpyNoise|numpy"),
    "generator of numpy": Kind(lambda: mlp(NumpyGenerator()), refused="'(net.)?1'|NumpyGenerator"),
    "noise of Python": Kind(
        lambda: mlp(PythonNoise()), refused="'(net.)?1'|PythonNoise|Python's random"
    ),
    "stochastic depth": Kind(lambda: mlp(SkippedLayer()), refused="'(net.)?1'|SkippedLayer"),
    "spectral_norm": Kind(
        lambda: on_inputs(parametrizations.spectral_norm(nn.Linear(6, 6))),
        refused=r"'(net.)?0[\w.]*'|SpectralNorm|spectral_norm",
    ),
    "spectral_norm by hook": Kind(
        lambda: on_inputs(quietly(nn.utils.spectral_norm, nn.Linear(6, 6))),
        refused="'(net.)?0'|SpectralNorm|spectral_norm",
    ),
    "BatchNorm1d": Kind(
        lambda: shaped((3, 2), nn.BatchNorm1d(3), width=6), refused="BatchNorm1d|'(net.)?1'"
    ),
    "BatchNorm1d on vectors": Kind(
        lambda: mlp(nn.BatchNorm1d(8)), refused="BatchNorm1d|more than 1 value per channel"
    ),
    "BatchNorm2d": Kind(
        lambda: shaped((1, 2, 3), nn.BatchNorm2d(1), width=6), refused="BatchNorm2d|'(net.)?1'"
    ),
    "BatchNorm3d": Kind(
        lambda: shaped((1, 1, 2, 3), nn.BatchNorm3d(1), width=6), refused="BatchNorm3d|'(net.)?1'"
    ),
    "SyncBatchNorm": Kind(
        lambda: shaped((3, 2), nn.SyncBatchNorm(3), width=6), refused="SyncBatchNorm|'(net.)?1'"
    ),
    "BatchNorm2d without a memory": Kind(
        lambda: shaped((1, 2, 3), nn.BatchNorm2d(1, track_running_stats=False), width=6),
        refused="BatchNorm2d|'(net.)?1'",
        when="maybe",
    ),
    "InstanceNorm with a memory": Kind(
        lambda: shaped((2, 3), nn.InstanceNorm1d(2, track_running_stats=True), width=6),
        refused="InstanceNorm1d|'(net.)?1'",
    ),
    "Embedding, renormalized": Kind(
        lambda: of_tokens(nn.Embedding(TOKENS, 4, max_norm=0.5)),
        tokens,
        refused="Embedding|embedding|'(net.)?0|0.0.weight",
        when="maybe",
    ),
    "Embedding, renormalized and tied": Kind(
        TiedTokens, tokens, refused="[Ee]mbedding", when="maybe"
    ),
    "moving quantile": Kind(lambda: on_inputs(Quantile()), refused="'(net.)?0'|Quantile"),
    "observer": Kind(lambda: mlp(Observer()), refused="'(net.)?1'|Observer"),
    "observer of what is odd": Kind(
        lambda: on_inputs(Observer(100.0)), refused="'(net.)?0'|Observer", when="asked"
    ),
    "codebook": Kind(lambda: mlp(Codebook()), refused="'(net.)?1'|Codebook"),
    "ActNorm": Kind(lambda: mlp(ActNorm()), refused="'(net.)?1'|ActNorm"),
    "stateful": Kind(
        lambda: nn.Sequential(Stateful(), nn.Linear(8, 3)), refused="'(net.)?0'|Stateful"
    ),
    "queue": Kind(lambda: mlp(Queue()), refused="'(net.)?1'|Queue"),
    "teacher": Kind(lambda: mlp(Teacher()), refused="'(net.)?1|Teacher|teacher"),
}
"""Refused, whatever backend is wanted."""
