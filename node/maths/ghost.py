"""Ghost clipping: gradients that are outer products are clipped and summed, never materialized.

Where every parameter belongs to a linear layer that sees one vector a_b per example, example b's
gradient is ∂ℓ_b/∂W = δ_b a_bᵀ and ∂ℓ_b/∂bias = δ_b, where δ_b = ∂ℓ_b/∂(the layer's output). So,
summed over the parameters,

    ‖g_b‖² = Σ ‖δ_b‖²‖a_b‖²,   ⟨g_b, g′_b⟩ = Σ (δ_b·δ′_b)(a_b·a′_b),
    and for each   Σ_b f_b g_b = δᵀ diag(f) a.

Norms: Goodfellow, arXiv 1510.01799; ghost clipping: Li et al., arXiv 2110.05679, who go backwards
once more for the sum. δ and a are float32, as the model computes them; all that follows is float64,
where their products can't overflow: a gradient too large for float32, which the other backends
leave out, is clipped like any other. One whose δ or a is not finite itself contributes zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.task import Factored, Factors, Objective
from peer.errors import ConfigurationError

ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Dropout,
)  # fmt: skip
"""Layers without parameters that can't mix examples. Dropout draws for each example."""


def factored(task: Objective) -> Factored:
    """The function that gives the task's gradients as factors.

    Raises:
        ConfigurationError: the task has no such method `factors()`, or it gives None.
    """
    result = task.factors()
    if result is None:
        raise ConfigurationError(
            'privacy.backend = "ghost" needs a model of linear layers with nothing but '
            'element-wise functions between them, like softmax and mlp; use "auto".'
        )
    return result


def is_linear(module: nn.Module, parameters: Collection[str], *, vectors: bool = False) -> bool:
    """Is it an nn.Sequential of a Flatten and then linear and element-wise layers that own all of
    the `parameters`? No Flatten is needed where examples are `vectors`.
    """
    if type(module) is not nn.Sequential or not len(module):
        return False
    layers = list(module.named_children())
    flattens = isinstance(layers[0][1], nn.Flatten)
    rest = layers[1:] if flattens else layers
    # a subclass of nn.Linear may do anything
    linear = {name: layer for name, layer in rest if type(layer) is nn.Linear}
    owned = [
        f"{name}.{inner}" for name, layer in linear.items() for inner, _ in layer.named_parameters()
    ]
    return (
        (_is_plain(layers[0][1]) if flattens else vectors)
        and all(_elementwise(layer) for name, layer in rest if name not in linear)
        and len(layers) == len(module)  # none is used twice
        and sorted(owned) == sorted(parameters)  # no parameter is shared
    )


def _is_plain(flatten: nn.Module) -> bool:
    """Does it leave the examples apart, and nothing else?"""
    return isinstance(flatten, nn.Flatten) and (flatten.start_dim, flatten.end_dim) == (1, -1)


def _elementwise(layer: nn.Module) -> bool:
    return type(layer) in ELEMENTWISE and not getattr(layer, "inplace", False)


def factors(
    layers: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]
) -> Factors:
    """Factors of an `is_linear` module's gradients on a batch x [n, …].

    `loss` is the SUM over the rows of the module's output of a loss of each, so that the rows of
    its gradient are the examples' own.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Linear):
            inputs[name] = x.detach()
            x = functional.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
            outputs[name] = x if x.requires_grad else x.requires_grad_()
        else:
            x = layer(x)
    deltas = torch.autograd.grad(loss(x), list(outputs.values()))
    result: Factors = {}
    for name, delta in zip(outputs, deltas, strict=True):
        result[f"{name}.weight"] = delta, inputs[name]
        if f"{name}.bias" in parameters:
            result[f"{name}.bias"] = delta, delta.new_ones(len(delta), 1)
    return result


def clip_and_sum(models: Sequence[Factors], clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Σ_b clip(g_b), or for the factors at two models Σ_b clip(clip(g_b) − clip(g′_b)): {parameter:
    float64 [out, in]}, and which examples were finite, bool [n].

    Examples whose norm is not finite at one of the models are left out.
    """
    models = [
        {name: (delta.double(), a.double()) for name, (delta, a) in factors.items()}
        for factors in models
    ]
    norms = torch.stack([_inner(factors, factors).sqrt() for factors in models])
    usable = norms.isfinite().all(0)
    if not bool(usable.all()):
        models = [
            {name: (delta[usable], a[usable]) for name, (delta, a) in factors.items()}
            for factors in models
        ]
        norms = norms[:, usable]
    factor = (clip / norms).clamp(max=1.0)
    if len(models) == 2:
        (f, g), (norm, other) = factor, factor * norms
        # rounding of the squares is 1e-15·C², so it can't be seen where the norm is C or more, and
        # matters nowhere else
        apart = (norm.square() + other.square() - 2 * f * g * _inner(*models)).clamp(min=0.0).sqrt()
        factor = torch.stack([f, -g]) * (clip / apart).clamp(max=1.0)
    sums = [_weighted_sum(f, factors) for f, factors in zip(factor, models, strict=True)]
    total = sums[0] if len(sums) == 1 else {name: sums[0][name] + sums[1][name] for name in sums[0]}
    return total, usable


def _inner(here: Factors, there: Factors) -> Tensor:
    """⟨g_b, g′_b⟩ of every example: [n]."""
    parts = [
        (here[name][0] * there[name][0]).sum(1) * (here[name][1] * there[name][1]).sum(1)
        for name in here
    ]
    return torch.stack(parts).sum(0)


def _weighted_sum(factor: Tensor, factors: Factors) -> dict[str, Tensor]:
    """Σ_b factor_b g_b, factor [n]: {parameter: [out, in]}."""
    return {name: (factor.unsqueeze(1) * delta).t() @ a for name, (delta, a) in factors.items()}
