"""The examples that a task with labels learns from and is tested on: a node's own, or its part of a
public set.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node import data as datasets
from node.config import DataSection, RunConfig, TaskSection
from node.data import Examples
from node.data.examples import STANDARDIZED
from node.data.scattering import remembered, scattering
from node.data.whitening import Whitening
from node.tasks import validation
from peer.errors import ConfigurationError, DataError

Sets: TypeAlias = tuple[Examples, Examples | None, Examples | None]
"""Training, test and validation set, as the model is fed."""


def load(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Sets:
    """The sets of one node: see `node.tasks.make`.

    Raises:
        ConfigurationError, DataError: they can't be read, or are not in one form.
    """
    task = run.task
    train, test, validation_set = _own(run, data) if task.data == "own" else _bundled(run, data)
    train = _prepared(train, task)
    if test and test.shape != train.shape:
        raise DataError(
            f"Test images have shape {test.shape}, training images {train.shape}; set "
            "task.image_size."
        )
    for what, other in (("Test", test), ("Validation", validation_set)):
        if other and inputs(other, task)["values"] != inputs(train, task)["values"]:
            raise DataError(
                f"{what} images are {other.values}, training images {train.values}; bring them "
                "into one form, or set task.value_range = [0, 1]."
            )
    validation_set = validation_set and _prepared(validation_set, task)
    if task.whiten is None:
        return train, test, validation_set
    public = _public(validation_set, run, data)
    whiten = _learned(public, task)
    return (
        replace(train, x=whiten(train.x)),
        test and replace(test, x=_whitened(test.x, whiten)),
        replace(public, x=whiten(public.x)),
    )


def inputs(examples: Examples, task: TaskSection) -> dict[str, str]:
    """What the model is fed: from the run file, and from shape and type of the node's data, never
    from their values.
    """
    values = (
        f"in task.value_range = {list(task.value_range)}" if task.value_range else examples.values
    )
    if task.value_range and task.value_range != (
        0,
        1,
    ):  # integers over their largest fill 0 … 1 and nothing else
        values = f"{examples.values}, {values}"
    words = {
        "shape": "×".join(map(str, examples.shape)),
        "values": values,
    }
    if task.target:
        words["target"] = f"{task.label} ({task.target[0]}, {task.target[1]})"
    else:
        words["classes"] = ", ".join(task.labels) or f"0 … {task.classes - 1}"
    if examples.values == STANDARDIZED:
        words["features"] = ", ".join(
            f"{name} ({feature.words})" for name, feature in task.features.items()
        )
    if task.mean:
        words["mean"], words["std"] = (", ".join(map(str, each)) for each in (task.mean, task.std))
    if task.transform:
        words["transform"] = task.transform
    if task.whiten is not None:
        words["whiten"] = f"{task.whiten:g}, of the validation set"
    return words


def _prepared(examples: Examples, task: TaskSection) -> Examples:
    images = examples.floats().scaled(task.image_size).standardized(task.mean, task.std)
    if not task.transform:
        return images
    transform = scattering if task.data == "own" else remembered
    return replace(images, x=transform(images.x))


def whitening(
    run: RunConfig, data: DataSection | NDArray[np.int64]
) -> tuple[Whitening, tuple[int, int, int]]:
    """The map of a run that has one, and the shape of what it maps.

    Raises:
        ConfigurationError, DataError: the validation set is not there.
    """
    path = data.path if isinstance(data, DataSection) else None
    train = datasets.own(path, run.task) if path else _images(run.task)[0]
    known = validation.load(run, data, train)
    public = _public(known and _prepared(known, run.task), run, data)
    return _learned(public, run.task), public.shape


def _public(
    examples: Examples | None, run: RunConfig, data: DataSection | NDArray[np.int64]
) -> Examples:
    """The validation set as one that features may be learned from.

    Raises:
        ConfigurationError: there is none, or no promise that it is everybody's.
    """
    if examples is None:
        raise ConfigurationError(
            "task.whiten needs the validation set: set data.validation in the node's file."
        )
    if not run.validation.public or (isinstance(data, DataSection) and not run.validation.digest):
        raise ConfigurationError(
            "task.whiten needs a validation set that is public, with its digest in run.toml, so "
            "that all nodes have the same: let up or pack write it."
        )
    return examples


def _learned(public: Examples, task: TaskSection) -> Whitening:
    assert task.whiten is not None
    x = public.x.numpy()
    return _whitening(x.tobytes(), x.shape, task.whiten)


@lru_cache(maxsize=1)
def _whitening(public: bytes, shape: tuple[int, ...], damping: float) -> Whitening:
    """Learned once for all nodes of a process."""
    return Whitening.of(
        torch.frombuffer(bytearray(public), dtype=torch.float32).view(shape), damping
    )


@lru_cache(maxsize=1)
def _whitened(test: Tensor, whitening: Whitening) -> Tensor:
    """The test set, which nodes of a process may share (`_public_test`)."""
    return whitening(test)


@lru_cache(maxsize=2)
def _public_test(section: str) -> Examples:
    """The public test set, prepared once for all nodes of a process: nobody changes it."""
    task = TaskSection.model_validate_json(section)
    return _prepared(_images(task)[1], task)


def _images(task: TaskSection) -> tuple[Examples, Examples]:
    train, test = datasets.public_sets(task)
    if not isinstance(train, Examples) or not isinstance(test, Examples):
        raise ConfigurationError(
            f'task.data = {task.data!r} is text; task.name = "causal-lm" learns it.'
        )
    return train, test


def _own(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Sets:
    task = run.task
    if not isinstance(data, DataSection):
        raise ConfigurationError(
            "task.data = own needs real nodes, or a file for each: up --data NODE=PATH. A model "
            "that was learned so is tested in a node's own folder, such as RUN/nodes/n0."
        )
    if data.path is None:
        raise ConfigurationError(
            "task.data = own needs data.path in the node's file: .npz, table or folder of images."
        )
    if not data.name:
        raise ConfigurationError(
            "Own data needs data.name in the node's file: its privacy ledger goes by that name."
        )
    train = datasets.own(data.path, task)
    test = _prepared(datasets.own(data.test, task.per_row), task) if data.test else None
    return train, test, validation.load(run, data, train)


def _bundled(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Sets:
    task = run.task
    train, test = _images(task)[0], _public_test(task.model_dump_json())
    if task.target is None and max(int(train.y.max()), int(test.y.max())) >= task.classes:
        raise ConfigurationError(f"task.classes = {task.classes} is too few for {task.data}.")
    if not isinstance(data, DataSection):
        return train.take(data), test, validation.load(run, data, train)
    if data.path is not None:
        raise ConfigurationError(
            f"data.path is set, but the run learns {task.data}; set task.data to own."
        )
    validation_set = validation.load(run, data, train)
    mine = train.take(datasets.rows(data.rows, len(train))) if data.rows else train
    return mine, test, validation_set
