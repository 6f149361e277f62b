"""Classification of images and of rows of a table: cross-entropy of an `nn.Module`'s logits,
evaluated on a test set. Its parts serve every task whose model has outputs for an example
(`Goal`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from node import device as devices
from node import models
from node.config import DataSection, RunConfig
from node.data import Examples
from node.data.examples import STANDARDIZED
from node.hooks import no_op
from node.maths import ghost
from node.maths.purity import refuse_batchnorm
from node.randomness import seeded
from node.task import Factored, Factors, Task, Validation, Value, flat, views
from node.tasks import sets
from node.tasks.goals import Classes, Goal, TableClasses, TwoClasses
from peer.message import Layout

CLASSES = Classes()
EVALUATION_CHUNK = 256
"""Test images per forward pass; a yield point is between two chunks."""


class Classification(Task):
    """A `Task`, safe to use from several threads: parameters are arguments."""

    indexes = bundled = True

    def __init__(
        self,
        build: Callable[[], nn.Module],
        train: Examples,
        test: Examples | None,
        validation: Examples | None = None,
        inputs: Mapping[str, str] | None = None,
        goal: Goal = CLASSES,
    ) -> None:
        """`build` makes a module without buffers that maps images [n, channels, height, width] to
        outputs [n, k], for classes logits. `inputs` says in public what it is fed, whatever the
        rows are: nodes compare it.

        Raises:
            ConfigurationError: the module has a batch normalization.
        """
        self._build, self._train, self._test, self._validation = build, train, test, validation
        self.inputs = inputs or {}
        self.num_examples, self.input_shape = len(train), train.shape
        self._goal, self.metrics = goal, goal.metrics
        with torch.device("meta"):
            self._skeleton = build()
        refuse_batchnorm(self._skeleton)
        self.layout = Layout(
            tuple((name, tuple(p.shape)) for name, p in self._skeleton.named_parameters())
        )
        groups: dict[str, list[str]] = {}
        for name, _ in self.layout.fields:
            groups.setdefault(name.split(".")[0], []).append(name)
        self.layer_groups = tuple(map(tuple, groups.values()))
        """One group for each module at the top that has parameters."""
        self._local = threading.local()

    def initial_parameters(self, seed: int) -> Tensor:
        with seeded(seed):
            return flat(self.layout, dict(self._build().named_parameters()))

    def to(self, device: torch.device) -> None:
        self.device, self._train = device, self._train.to(device)
        self._test = self._test.to(device) if self._test else None
        self._validation = self._validation.to(device) if self._validation else None

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(self.device)
        return self._train.x[rows], self._train.y[rows]

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        x, y = example
        return self.mean_loss(parameters, (x.unsqueeze(0), y.unsqueeze(0)))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return self._goal.loss(self._outputs(parameters, x), y)

    def factors(self) -> Factored | None:
        """What gives the gradients as outer products (node/maths/ghost.py); None where they are
        none.
        """
        if not ghost.is_linear(self._skeleton, [name for name, _ in self.layout.fields]):
            return None

        def factors(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
            x, y = batch
            loss = partial(self._goal.loss, y=y, reduction="sum")
            return ghost.factors(self._module().train(True), parameters, x, loss)

        return factors

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        """The goal's metrics on the test set; {} where there is none. `yield_point` is called
        between chunks.
        """
        if self._test is None:
            return {}
        loss, n, x = 0.0, len(self._test), devices.onto(x, self.device)
        outputs = []
        for start in range(0, n, EVALUATION_CHUNK):
            if start:
                yield_point()
            place = slice(start, start + EVALUATION_CHUNK)
            with torch.inference_mode():
                outputs.append(
                    self._outputs(views(self.layout, x), self._test.x[place], train=False)
                )
                loss += float(self._goal.loss(outputs[-1], self._test.y[place], "sum"))
        return {**self._goal.measure(torch.cat(outputs), self._test.y), "loss": loss / n}

    @property
    def validation(self) -> Validation | None:
        return None if self._validation is None else self

    @property
    def units(self) -> NDArray[np.int64] | None:
        return self._train.units

    def validate(self, parameters: Mapping[str, Tensor], kind: Value) -> Tensor:
        """Scalar: accuracy in [0, 1], or the negative mean loss, on the validation set."""
        assert self._validation is not None
        outputs = self._outputs(parameters, self._validation.x, train=False)
        return self._goal.value(outputs, self._validation.y, kind)

    def linear_first(self, x: Tensor, moves: Tensor) -> Callable[[Tensor, Value], Tensor] | None:
        """(share [k], kind) -> value of x + share·moves on the validation set, without its first
        layer's product, which is linear in the parameters: it is made once for x and for every move
        [k, d]. None: that layer is not linear."""
        module = self._module().train(False)
        layers = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        while layers and isinstance(layers[0][1], nn.Flatten):
            layers = layers[1:]
        if self._validation is None or not layers or not isinstance(layers[0][1], nn.Linear):
            return None
        first, rest, y = (
            layers[0][0],
            nn.Sequential(*(layer for _, layer in layers[1:])),
            self._validation.y,
        )
        inputs = self._validation.x.flatten(1)
        all_of = torch.cat([x.unsqueeze(0), moves])
        products = torch.stack([_linear(views(self.layout, it), first, inputs) for it in all_of])
        ready, steps = products[0].reshape(-1), products[1:].reshape(len(moves), -1).t()
        names = {
            f"{place}.{inner}": f"{name}.{inner}"
            for place, (name, layer) in enumerate(layers[1:])
            for inner, _ in layer.named_parameters()
        }

        def value(share: Tensor, kind: Value) -> Tensor:
            hidden = torch.addmv(ready, steps, share).view(products.shape[1:])
            parameters = views(self.layout, torch.addmv(x, moves.t(), share)) if names else {}
            outputs = functional_call(
                rest, {mine: parameters[name] for mine, name in names.items()}, (hidden,)
            )
            return self._goal.value(outputs, y, kind)

        return value

    def _outputs(
        self, parameters: Mapping[str, Tensor], x: Tensor, *, train: bool = True
    ) -> Tensor:
        outputs: Tensor = functional_call(self._module().train(train), dict(parameters), (x,))
        return outputs

    def _module(self) -> nn.Module:
        """This thread's own parameterless module: functional_call swaps parameters inside it while
        it runs.
        """
        if not hasattr(self._local, "module"):
            self._local.module = copy.deepcopy(self._skeleton)
        module: nn.Module = self._local.module
        return module


def _linear(parameters: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
    return functional.linear(inputs, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))


def make(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Classification:
    """See `node.tasks.make`."""

    def goal(train: Examples) -> Goal:
        if train.values != STANDARDIZED:
            return CLASSES
        return TwoClasses() if run.task.classes == 2 else TableClasses()

    return supervised(run, data, goal)


def supervised(
    run: RunConfig, data: DataSection | NDArray[np.int64], goal_of: Callable[[Examples], Goal]
) -> Classification:
    """A task whose goal depends on what kind of examples there are; see `node.tasks.make`."""
    train, test, validation_set = sets.load(run, data)
    return Classification(
        lambda: models.build(run.task, train.shape),
        train,
        test,
        validation_set,
        sets.inputs(train, run.task),
        goal_of(train),
    )
