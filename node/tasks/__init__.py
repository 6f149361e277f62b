"""The tasks: one file each, one line in the table each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import DataSection, RunConfig
from node.device import CPU
from node.task import Task
from peer.errors import ConfigurationError

TASKS: Mapping[str, str] = {
    "classification": "node.tasks.classification:make",
}
"""name -> module:function, called with the run and the node's data. A new task: one file, one line here."""


def make(run: RunConfig, data: DataSection | NDArray[np.int64], device: torch.device = CPU) -> Task:
    """The run's task on one node's data: a daemon's `[data]`, or row numbers of a bundled data set (`simulate`; for
    the node of `centralised`, `partition.union` of all parts).

    Raises:
        ConfigurationError: no task, data set or model of that name, or a combination that does not fit.
        DataError: the node's files are missing, damaged or not what the task expects.
    """
    if run.task.name not in TASKS:
        raise ConfigurationError(f"Unknown task {run.task.name!r}; choose one of {', '.join(sorted(TASKS))}.")
    module, _, function = TASKS[run.task.name].partition(":")
    task: Task = getattr(import_module(module), function)(run, data)
    if device != CPU and hasattr(task, "to"):
        task.to(device)
    return task


__all__ = ["TASKS", "make"]
