"""A task made of a plain torch module, examples and a loss: `peerpoise.module_task`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from node.device import CPU, onto
from node.figures import ACCURACY, LOSS, Metric
from node.hooks import no_op
from node.maths import ghost
from node.maths.purity import refuse_batchnorm
from node.models.recurrent import unroll
from node.randomness import seeded
from node.task import Factored, Factors, OwnTask, Value, flat, layout_of, views
from peer.errors import ConfigurationError, DataError

Tree: TypeAlias = Any
"""A tensor, or a tuple, list or dict of trees."""
Measure: TypeAlias = Callable[[Tree, Tree], Tensor | float]
"""(the module's outputs, the targets) of many examples -> one number."""

AT_ONCE = 256
"""Test examples in a forward pass; a yield point is between two."""


def module_task(
    module: nn.Module | Callable[[], nn.Module],
    data: Any,
    loss: Measure,
    *,
    test: Any = None,
    validation: Any = None,
    metrics: Mapping[Metric, Measure] | None = None,
    inputs: Mapping[str, str] = MappingProxyType({}),
    micro_batch: int | None = None,
    units: Sequence[str | int] | None = None,
) -> OwnTask:
    """The task to learn a module from examples.

    Args:
        module: a function that builds it, whose random numbers are drawn from the run's seed; or
            the module itself, whose parameters are then the initial ones, and have to be the same
            at all nodes. What does not ask for gradients stays as it is, and is never sent.
        data: a torch `Dataset` (anything with a length and items) of (input, target), or the pair
            (inputs, targets) of arrays, whose first dimension counts the examples. Inputs and
            targets are tensors, arrays or numbers, or tuples or dicts of those, of the same shapes
            in every example. A tuple is passed to the module as arguments, a dict as named ones.
        loss: (outputs, targets) -> scalar; is given one example at a time, as a batch of one.
        test: examples that are public, measured with `evaluate_every`.
        validation: public examples by which ROSS and PDSL score what they hear.
        metrics: what `test` is measured by, the headline first, beside the loss; each function is
            given all outputs and targets at once. By default the accuracy, if the loss is torch's
            cross-entropy.
        inputs: what the module is fed, in words that nodes compare (docs/own-task.md).
        micro_batch: how many examples a backward pass takes; None: any number.
        units: whose each example of `data` is, where the run has a privacy unit (task.unit).

    Raises:
        ConfigurationError, DataError: one sentence.
        Impure: the module has a batch normalization.
    """
    if isinstance(module, nn.Module):
        build: Callable[[], nn.Module] = partial(copy.deepcopy, module)
    else:
        build = module
    if metrics is None:
        metrics = {ACCURACY: accuracy} if _is_cross_entropy(loss) else {}
    return ModuleTask(
        build,
        Stacked.of(data, "data"),
        loss,
        test=None if test is None else Stacked.of(test, "test"),
        validation=None if validation is None else Stacked.of(validation, "validation"),
        metrics=metrics,
        inputs=inputs,
        micro_batch=micro_batch,
        units=units,
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the likeliest classes that are right; dimension 1 counts the classes."""
    return (outputs.argmax(1) == targets).float().mean()


def _is_cross_entropy(loss: object) -> bool:
    return loss is functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


class Stacked:
    """Examples: tensors whose first dimension counts them, and the tree that one is made of."""

    def __init__(self, leaves: Sequence[Tensor], tree: TreeSpec, what: str) -> None:
        lengths = {len(leaf) for leaf in leaves}
        if len(lengths) != 1:
            raise DataError(
                f"{what}: inputs and targets have {', '.join(map(str, sorted(lengths)))} rows; "
                "each example needs one of each."
            )
        self.leaves, self.tree = tuple(leaves), tree

    @classmethod
    def of(cls, data: Any, what: str) -> Stacked:
        """Raises ConfigurationError, DataError: it has another form, or examples differ in it."""
        if isinstance(data, tuple) and len(data) == 2 and not hasattr(data, "_fields"):
            leaves, tree = tree_flatten(data)
            return cls([_tensor(leaf, what, rows=True) for leaf in leaves], tree, what)
        try:
            examples = [data[k] for k in range(len(data))]
        except TypeError as error:
            raise ConfigurationError(
                f"{what} is neither a Dataset, with a length and items, nor a pair of arrays "
                "(inputs, targets); make a list of it, if it can only be iterated over."
            ) from error
        if not examples:
            raise DataError(f"{what} has no examples.")
        first, tree = _flat(examples[0], what)
        shapes = [leaf.shape for leaf in first]
        columns: list[list[Tensor]] = [[] for _ in shapes]
        for number, example in enumerate(examples):
            tensors, form = _flat(example, what)
            if form != tree or [leaf.shape for leaf in tensors] != shapes:
                raise DataError(
                    f"{what}: example {number} has the shapes {_shapes(tensors)}, example 0 has "
                    f"{_shapes(first)}; pad them to one length, and leave the padding out of the "
                    "loss."
                )
            for column, tensor in zip(columns, tensors, strict=True):
                column.append(tensor)
        return cls([torch.stack(column) for column in columns], tree, what)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def to(self, device: torch.device) -> Stacked:
        return Stacked([leaf.to(device) for leaf in self.leaves], self.tree, "")

    def part(self, first: int, count: int) -> tuple[Tensor, ...]:
        return tuple(leaf[first : first + count] for leaf in self.leaves)


def _flat(example: object, what: str) -> tuple[list[Tensor], TreeSpec]:
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise ConfigurationError(
            f"An item of {what} is no pair (input, target); several inputs or targets make a tuple "
            "or a dict of their own."
        )
    leaves, tree = tree_flatten(tuple(example))
    return [_tensor(leaf, what) for leaf in leaves], tree


def _tensor(value: object, what: str, *, rows: bool = False) -> Tensor:
    """Floats as float32, integers as int64."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} holds something of type {type(value).__name__}; numbers, arrays and tensors "
            "are expected, or tuples and dicts of them."
        ) from error
    if rows and not tensor.dim():
        raise DataError(f"{what} holds a single number where an array of one row an example goes.")
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64)


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


class ModuleTask:
    """See `module_task`; it fulfills `node.task.OwnTask`. Parameters are arguments, so it may be
    used from several threads."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        train: Stacked,
        loss: Measure,
        *,
        test: Stacked | None,
        validation: Stacked | None,
        metrics: Mapping[Metric, Measure],
        inputs: Mapping[str, str],
        micro_batch: int | None,
        units: Sequence[str | int] | None,
    ) -> None:
        self._build, self._loss = build, loss
        self._train, self._test, self._validation = train, test, validation
        self._measures, self.metrics = metrics, (*metrics, LOSS)
        self.inputs, self.micro_batch, self.device = inputs, micro_batch, CPU
        self.units = units
        with seeded(0):  # what is frozen is the same everywhere
            self._model = unroll(build())
        refuse_batchnorm(self._model)
        self.layout = layout_of(self._model)
        groups: dict[str, list[str]] = {}
        for name, _ in self.layout.fields:
            groups.setdefault(name.split(".")[0], []).append(name)
        self.layer_groups = tuple(map(tuple, groups.values()))
        """One group for each module at the top that has parameters."""
        self.validate = self._validate if validation else None
        self._local = threading.local()

    @property
    def num_examples(self) -> int:
        return len(self._train)

    def initial_parameters(self, seed: int) -> Tensor:
        with seeded(seed):
            return flat(self.layout, dict(self._build().named_parameters()))

    def to(self, device: torch.device) -> None:
        self.device, self._model = device, self._model.to(device)
        self._train = self._train.to(device)
        self._test = self._test and self._test.to(device)
        self._validation = self._validation and self._validation.to(device)
        self._local = threading.local()

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(self.device)
        return tuple(leaf[rows] for leaf in self._train.leaves)

    def loss(self, parameters: Mapping[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        outputs, targets = self._outputs(parameters, tuple(leaf.unsqueeze(0) for leaf in example))
        return torch.as_tensor(self._loss(outputs, targets))

    def mean_loss(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self._losses(*self._outputs(parameters, batch), len(batch[0])).mean()

    def factors(self) -> Factored | None:
        """What gives the gradients as outer products (node/maths/ghost.py); None where they are
        none.
        """
        vectors = len(self._train.leaves) == 2 and self._train.leaves[0].dim() == 2
        names = [name for name, _ in self.layout.fields]
        if not ghost.is_linear(self._model, names, vectors=vectors):
            return None

        def factors(parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Factors:
            inputs, targets = self._unflatten(batch)

            def total(outputs: Tensor) -> Tensor:
                return self._losses(outputs, targets, len(outputs)).sum()

            return ghost.factors(self._module().train(True), parameters, inputs, total)

        return factors

    def evaluate(self, x: Tensor, yield_point: Callable[[], None] = no_op) -> dict[str, float]:
        if self._test is None:
            return {}
        parameters = views(self.layout, onto(x, self.device))
        losses: list[Tensor] = []
        parts: list[tuple[Tree, Tree]] = []
        for start in range(0, len(self._test), AT_ONCE):
            if start:
                yield_point()
            some = self._test.part(start, AT_ONCE)
            with torch.no_grad():
                parts.append(self._outputs(parameters, some, train=False))
                losses.append(self._losses(*parts[-1], len(some[0])))
        outputs, targets = tree_map(lambda *leaves: torch.cat(leaves), *parts)
        measured = {m.name: float(f(outputs, targets)) for m, f in self._measures.items()}
        return {**measured, LOSS.name: float(torch.cat(losses).mean())}

    def _validate(self, parameters: Mapping[str, Tensor], kind: Value) -> Tensor:
        assert self._validation is not None
        outputs, targets = self._outputs(parameters, self._validation.leaves, train=False)
        if kind == "neg_loss":
            return -self._losses(outputs, targets, len(self._validation)).mean()
        headline = self.metrics[0]
        if headline.unit != "ratio" or not headline.higher_is_better:
            raise ConfigurationError(
                "The task's headline metric is no share that is better the higher it is, such as "
                'an accuracy; set algorithm.value = "neg_loss".'
            )
        return torch.as_tensor(self._measures[headline](outputs, targets))

    def _outputs(
        self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...], *, train: bool = True
    ) -> tuple[Tree, Tree]:
        """The module's outputs for a batch, and the targets."""
        inputs, targets = self._unflatten(batch)
        module, named = self._module().train(train), dict(parameters)
        if isinstance(inputs, dict):
            return functional_call(module, named, (), inputs), targets
        return functional_call(module, named, inputs), targets

    def _unflatten(self, batch: tuple[Tensor, ...]) -> tuple[Tree, Tree]:
        inputs, targets = tree_unflatten(list(batch), self._train.tree)
        return inputs, targets

    def _losses(self, outputs: Tree, targets: Tree, count: int) -> Tensor:
        """Of each example by itself, [count]: a loss over a batch may average over what examples
        have more or less of, such as words that are no padding.
        """

        def one(k: int) -> Tensor:
            output, target = tree_map(lambda leaf: leaf[k : k + 1], (outputs, targets))
            return torch.as_tensor(self._loss(output, target)).reshape(())

        return torch.stack([one(k) for k in range(count)])

    def _module(self) -> nn.Module:
        """This thread's own module: functional_call swaps parameters inside it while it runs."""
        if not hasattr(self._local, "module"):
            self._local.module = copy.deepcopy(self._model)
        module: nn.Module = self._local.module
        return module
