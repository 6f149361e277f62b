"""The tasks: one file each, one line in the table each; yours by its name (docs/own-task.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from inspect import getmodule, unwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node import data as datasets
from node.config import DataSection, RunConfig
from node.device import CPU
from node.task import Task
from node.tasks.guard import guard, guarded
from node.tasks.loading import absolute, is_file, load
from node.tasks.switches import switches_kept
from peer.errors import ConfigurationError, DataError, TaskError
from peer.message import Layout
from peer.tables import load_entry

TASKS: Mapping[str, str] = {
    "causal-lm": "node.tasks.causal_lm:make",
    "classification": "node.tasks.classification:make",
    "reasoning": "node.tasks.reasoning:make",
    "regression": "node.tasks.regression:make",
}
"""name -> module:function, called with the run and the node's data. A new task: one file, one line
here, and its name in BUNDLED_TASKS (node/config/task.py)."""


def make(run: RunConfig, data: DataSection | NDArray[np.int64], device: torch.device = CPU) -> Task:
    """The run's task on one node's data: row numbers of a public data set (for the node of
    `centralized`, `partition.union` of all parts), or a daemon's `[data]`. An own task is given row
    numbers of public data everywhere, and `[data]` only where the data are the node's own.

    Raises:
        ConfigurationError: no task, data set or model of that name, or a combination that does not
            fit.
        DataError: the node's files are missing, damaged or not what the task expects.
        TaskError: the code of an own task made a mistake.
    """
    name = run.task.name
    task = find(name)(run, data) if name in TASKS else _own(run, data)
    if device != CPU:
        task.to(device)
    return task


def _own(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Task:
    """Somebody's own task, guarded."""
    name = run.task.name
    given = _public_rows(run, data) if run.task.data != "own" else data
    with switches_kept(name):
        made = find(name)(run, given)
    return guard(made, name)


def _public_rows(run: RunConfig, data: DataSection | NDArray[np.int64]) -> NDArray[np.int64]:
    """Which rows of the public set a node learns from."""
    if not isinstance(data, DataSection):
        return data
    if data.path is not None:
        raise ConfigurationError(
            f"data.path is set, but the run learns {run.task.data}; set task.data to own."
        )
    count = len(to_divide(run))
    return datasets.rows(data.rows, count) if data.rows else np.arange(count)


def to_divide(run: RunConfig) -> datasets.Rows:
    """The rows that nodes are given parts of: the public training set; or where the module of an
    own task has a function `labels(run)`, the rows of `task.path` as it labels them. No code of
    ours reads that file.

    Raises:
        ConfigurationError, DataError: the set can't be read.
        TaskError: `labels` returns something else.
    """
    own_file = run.task.data == "file" and run.task.name not in TASKS
    labels = _beside(run, "labels") if own_file else None
    if labels is None:
        return _public_train(run, own_file)
    y = torch.as_tensor(labels(run))
    if y.dim() != 1 or len(y) == 0 or y.is_floating_point() or y.is_complex() or int(y.min()) < 0:
        raise TaskError(
            f"task.name = {run.task.name!r}: labels(run) has to return an integer from 0 up for "
            "each row of task.path (zeros where there are no classes)."
        )
    return datasets.Examples(torch.empty(len(y), 0), y.long())


def _public_train(run: RunConfig, own_file: bool) -> datasets.Rows:
    try:
        return datasets.public_sets(run.task)[0]
    except (ConfigurationError, DataError) as error:
        if not own_file:
            raise
        raise type(error)(
            f"{error} If only the task's code can read the file, put a function labels(run) beside "
            "the task's (peerpoise show own-task)."
        ) from None


def find(name: str) -> Callable[[RunConfig, DataSection | NDArray[np.int64]], Task]:
    """The function of a name in the table, of an installed entry point, of
    "package.module:function", or of "FILE.py:function"; guarded, but for those in the table.

    Raises:
        ConfigurationError: there is none.
        TaskError: the module can't be imported, because of its own code.
    """
    if name in TASKS:
        maker: Callable[..., Task] = load_entry(TASKS, name, "task")
        return maker
    path = next((entry.value for entry in entry_points(group="peerpoise.tasks", name=name)), name)
    module, colon, function = path.rpartition(":")
    if not colon:
        raise ConfigurationError(
            f"Unknown task {name!r}; choose one of {', '.join(sorted(TASKS))}, or your own as "
            "package.module:function or FILE.py:function."
        )
    if not function:
        raise ConfigurationError(
            f"task.name = {name!r} names no function; write package.module:function."
        )
    own: object = getattr(guarded(load, name, "import")(module, path), function, None)
    if not callable(own):
        raise ConfigurationError(f"task.name = {name!r}: {module} has no function {function!r}.")
    return guarded(own, name, function)


def sealed(run: RunConfig) -> RunConfig:
    """The run with what its task needs to be the same at all nodes written out, where its module
    says so (`seal`).

    Raises:
        ConfigurationError, DataError, TaskError: as `make`.
    """
    seal: Callable[[RunConfig], RunConfig] | None = _beside(run, "seal")
    return seal(run) if seal else run


def exporter(run: RunConfig) -> Callable[[RunConfig, Layout, Tensor, Path], None] | None:
    """What writes a whole model of the run's task as a folder, where its module can
    (`save_pretrained`).
    """
    return _beside(run, "save_pretrained")


def _beside(run: RunConfig, name: str) -> Callable[..., Any] | None:
    """A function of the module that the task comes from."""
    function: Callable[..., object] | None = getattr(
        getmodule(unwrap(find(run.task.name))), name, None
    )
    return (
        function
        if function is None or run.task.name in TASKS
        else guarded(function, run.task.name, name)
    )


__all__ = ["TASKS", "absolute", "exporter", "find", "is_file", "make", "sealed", "to_divide"]
