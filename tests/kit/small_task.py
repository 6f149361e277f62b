"""A small private task, and a gate around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from node.config import PrivacySection
from node.hooks import Hooks, no_op
from node.maths import ghost
from node.privacy.gate import GateConfig, GradientGate, make_gate
from node.privacy.ledger import Ledger
from node.randomness import Keys
from node.task import Factored, Task, flat
from peer.message import Layout


class Small(Task):
    """An `nn.Module` on random examples, as a `Task`."""

    def __init__(self, module: nn.Module, x: Tensor, y: Tensor) -> None:
        self.module, self.x, self.y = module.eval(), x, y
        self.num_examples = len(x)
        self.layout = Layout(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))

    def initial_parameters(self, seed: int) -> Tensor:
        return flat(self.layout, dict(self.module.named_parameters()))

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.x[rows], self.y[rows]

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return self.mean_loss(parameters, (example[0].unsqueeze(0), example[1].unsqueeze(0)))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return nn.functional.cross_entropy(
            functional_call(self.module, dict(parameters), (batch[0],)), batch[1]
        )

    def factors(self) -> Factored | None:
        if not ghost.is_linear(self.module, [name for name, _ in self.layout.fields]):
            return None
        return lambda parameters, batch: ghost.factors(
            self.module,
            parameters,
            batch[0],
            lambda z: nn.functional.cross_entropy(z, batch[1], reduction="sum"),
        )

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        return {}


def make_small(kind: str = "softmax", n: int = 40) -> Small:
    torch.manual_seed(0)
    modules = {
        "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)),
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)),
        "cnn": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.GroupNorm(2, 4),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 4),
        ),
    }
    shape = (n, 6) if kind == "softmax" else (n, 1, 8, 8)
    module = modules[kind]()
    return Small(module, torch.randn(shape), torch.randint(0, 3, (n,)))


HOOKS = ("yield_point", "on_release", "on_withheld", "on_unusable")


def gate(
    task: Task, ledger: Ledger | None, keys: Keys | None = None, **changes: Any
) -> GradientGate:
    """A gate of mode strict with σ = 1 unless told otherwise; `config_…` changes go to `[privacy]`,
    hooks to `Hooks`, all others to `GateConfig`.
    """
    privacy: dict[str, Any] = {
        "mode": "strict",
        "sigma": 1.0,
        "rate": 0.5,
        "batch": 20,
        "backend": "vmap",
    }
    node: dict[str, Any] = {"me": "a", "run": "run", "rounds": 10, "releases": 3, "seed": 0}
    hooks: dict[str, Any] = {}
    for name, value in changes.items():
        if name.startswith("config_"):
            privacy[name.removeprefix("config_")] = value
        elif name in HOOKS:
            hooks[name] = value
        else:
            node[name] = value
    config = GateConfig(privacy=PrivacySection(**privacy), **{"sigma": privacy["sigma"], **node})
    return make_gate(
        config, task, ledger=ledger, keys=keys or Keys.insecure(1, "a"), hooks=Hooks(**hooks)
    )
