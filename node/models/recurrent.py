"""Recurrent layers step by step, so that vmap can take their gradients example by example.

torch's own kernels for nn.RNN, nn.GRU and nn.LSTM have no rule for vmap: per-example gradients then
come from a loop, some twenty times slower than a plain pass. Here every step is a linear layer and
element-wise functions. Same parameters, same names, same figures up to rounding.

Not covered: dropout between layers (it draws, so such a model is computed record by record anyway),
LSTMs with proj_size, packed sequences. Such layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Step: TypeAlias = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(x [n, in], state, weights) -> the next state, each tensor [n, hidden]; h is its first."""


def unroll(module: nn.Module) -> nn.Module:
    """The module, in which every layer that can be is computed step by step."""
    for layer in module.modules():
        if (kind := _UNROLLED.get(type(layer))) and _is_plain(layer):
            layer.__class__ = kind
    return module


def _is_plain(layer: nn.Module) -> bool:
    assert isinstance(layer, nn.RNNBase)
    return layer.dropout == 0 and layer.proj_size == 0


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(
        x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return (activation(sum(_gates(x, state[0], weights))),)  # type: ignore[arg-type]

    return step


def _gru(x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (h,) = state
    of_x, of_h = _gates(x, h, weights)
    reset_x, update_x, new_x = of_x.chunk(3, 1)
    reset_h, update_h, new_h = of_h.chunk(3, 1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (new + update * (h - new),)


def _lstm(x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    h, c = state
    of_x, of_h = _gates(x, h, weights)
    i, f, g, o = (of_x + of_h).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gates(x: Tensor, h: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """What the input and what the state contribute, [n, gates · hidden]."""
    of_x, of_h, *bias = weights
    bias_x, bias_h = bias or (None, None)
    return functional.linear(x, of_x, bias_x), functional.linear(h, of_h, bias_h)


def _forward(
    layer: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], step: Step
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """x [T, n, in] and the state before, each [layers · directions, n, hidden] -> the outputs
    [T, n, directions · hidden], and the last state of each layer and direction."""
    directions, last = 2 if layer.bidirectional else 1, []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            place = number * directions + direction
            weights = tuple(getattr(layer, name) for name in layer._all_weights[place])
            now = tuple(part[place] for part in state)
            order = range(len(x)) if direction == 0 else range(len(x) - 1, -1, -1)
            steps = []
            for t in order:
                now = step(x[t], now, weights)
                steps.append(now[0])
            outputs.append(torch.stack(steps if direction == 0 else steps[::-1]))
            last.append(now)
        x = torch.cat(outputs, 2)
    return x, last


def _call(
    layer: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...] | None, parts: int, step: Step
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As the layer's own `forward`: x [T, in], [T, n, in], or with batch_first [n, T, in]."""
    alone, turned = x.dim() == 2, x.dim() == 3 and layer.batch_first
    if alone:
        x = x.unsqueeze(1)
        state = state and tuple(part.unsqueeze(1) for part in state)
    elif turned:
        x = x.transpose(0, 1)
    if state is None:
        places = layer.num_layers * (2 if layer.bidirectional else 1)
        zeros = x.new_zeros(places, x.shape[1], layer.hidden_size)
        state = (zeros,) * parts
    outputs, last = _forward(layer, x, state, step)
    after = tuple(torch.stack([each[part] for each in last]) for part in range(parts))
    if alone:
        return outputs.squeeze(1), tuple(part.squeeze(1) for part in after)
    return (outputs.transpose(0, 1) if turned else outputs), after


class UnrolledRNN(nn.RNN):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        step = _rnn(torch.tanh if self.nonlinearity == "tanh" else torch.relu)
        outputs, (h,) = _call(self, input, None if hx is None else (hx,), 1, step)
        return outputs, h


class UnrolledGRU(nn.GRU):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        outputs, (h,) = _call(self, input, None if hx is None else (hx,), 1, _gru)
        return outputs, h


class UnrolledLSTM(nn.LSTM):
    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, (h, c) = _call(self, input, hx, 2, _lstm)
        return outputs, (h, c)


_UNROLLED: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: UnrolledRNN,
    nn.GRU: UnrolledGRU,
    nn.LSTM: UnrolledLSTM,
}
