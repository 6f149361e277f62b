"""The tasks: one file each, one line in the table each; yours by its name (docs/own-task.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getmodule
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.config import DataSection, RunConfig
from node.device import CPU
from node.task import Task
from peer.errors import ConfigurationError
from peer.message import Layout

TASKS: Mapping[str, str] = {
    "causal-lm": "node.tasks.causal_lm:make",
    "classification": "node.tasks.classification:make",
}
"""name -> module:function, called with the run and the node's data. A new task: one file, one line here."""
NEEDED = ("layout", "examples", "start", "batch", "loss", "mean_loss", "evaluate")
"""What `node.task.Task` asks for, but `device` and `to`."""


def make(run: RunConfig, data: DataSection | NDArray[np.int64], device: torch.device = CPU) -> Task:
    """The run's task on one node's data: a daemon's `[data]`, or row numbers of a public data set (`simulate`; for
    the node of `centralised`, `partition.union` of all parts).

    Raises:
        ConfigurationError: no task, data set or model of that name, or a combination that does not fit.
        DataError: the node's files are missing, damaged or not what the task expects.
    """
    task: Task = _maker(run.task.name)(run, data)
    if missing := [name for name in NEEDED if not hasattr(task, name)]:
        raise ConfigurationError(f"task.name = {run.task.name!r} made something without {', '.join(missing)}: no Task.")
    if device != CPU and hasattr(task, "to"):
        task.to(device)
    return task


def _maker(name: str) -> Callable[[RunConfig, DataSection | NDArray[np.int64]], Task]:
    """The function of a name in the table, of an installed entry point, or of "package.module:function"."""
    path = TASKS.get(name) or next((it.value for it in entry_points(group="peerpoise.tasks", name=name)), name)
    module, colon, function = path.partition(":")
    if not colon:
        raise ConfigurationError(
            f"Unknown task {name!r}; choose one of {', '.join(sorted(TASKS))}, or your own as package.module:function."
        )
    try:
        found: Callable[..., Task] | None = getattr(import_module(module), function, None)
    except ImportError as error:
        raise ConfigurationError(f"task.name = {name!r} can't be imported: {error}.") from None
    if not callable(found):
        raise ConfigurationError(f"task.name = {name!r}: {module} has no function {function!r}.")
    return found


def sealed(run: RunConfig) -> RunConfig:
    """The run with what its task needs to be the same at all nodes written out, where its module says so (`seal`).

    Raises:
        ConfigurationError, DataError: as `make`.
    """
    seal: Callable[[RunConfig], RunConfig] | None = getattr(getmodule(_maker(run.task.name)), "seal", None)
    return seal(run) if seal else run


def exporter(run: RunConfig) -> Callable[[RunConfig, Layout, Tensor, Path], None] | None:
    """What writes a whole model of the run's task as a folder, where its module can (`save_pretrained`)."""
    found: Callable[..., None] | None = getattr(getmodule(_maker(run.task.name)), "save_pretrained", None)
    return found


__all__ = ["TASKS", "exporter", "make", "sealed"]
