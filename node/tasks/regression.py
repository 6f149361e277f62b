"""Regression: a number of a table's row, by the squared error of a model with one output. In all
else it is classification.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.config import DataSection, RunConfig
from node.data import Examples
from node.data.examples import STANDARDIZED
from node.tasks.classification import Classification, supervised
from node.tasks.goals import Goal, Number
from peer.errors import ConfigurationError


def make(run: RunConfig, data: DataSection | NDArray[np.int64]) -> Classification:
    """See `node.tasks.make`."""
    assert run.task.target is not None
    center, scale = run.task.target
    if run.algorithm.options.get("value") == "accuracy":
        raise ConfigurationError(
            'A regression has no accuracy to value neighbors by; set algorithm.value = "neg_loss".'
        )

    def goal(train: Examples) -> Goal:
        if train.values != STANDARDIZED:
            raise ConfigurationError(
                'task.name = "regression" learns a column of a table; data.path or task.path names '
                "something else."
            )
        return Number(center, scale)

    return supervised(run, data, goal)
