"""Tables (CSV, Parquet): numeric columns, standardized by PUBLIC constants, and a column of labels.

The constants stand in the run file, equal at all nodes: a mean computed from private rows would be
a release that no ledger knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import TaskSection
from node.data import columns
from node.data.cells import TRUTH, numbers
from node.data.examples import STANDARDIZED, Examples
from node.encoding import composed
from peer.errors import ConfigurationError, DataError

INTEGER = re.compile(r"([+-]?\d+)(\.0*)?")
WHOLE = re.compile(r"\.0+$")
"""What floats and decimals write behind whole numbers."""
QUOTED = 40
"""A label that is none may be shown if it is no longer: it may be another column's cell."""


def table(path: Path, task: TaskSection) -> Examples:
    """The rows as images of 1 × 1 × features: (value − center)/scale in the order of
    `task.features`.

    Raises:
        ConfigurationError: the run file names no features, or pyarrow is missing.
        DataError: the file is missing, damaged, lacks a column, or holds what is no number or no
            label.
    """
    if not task.features:
        raise ConfigurationError(
            "A table needs [task.features] in the run file: column = [center, scale], public "
            "constants of each."
        )
    cells = columns.read(path, (*task.features, task.label), others=task.data != "own")
    if not (n := len(cells[task.label])):
        raise DataError(f"{path} has no rows.")
    values = [_scaled(path, name, cells[name], *task.features[name]) for name in task.features]
    x = torch.from_numpy(np.stack(values, axis=1)).view(n, 1, 1, len(values))
    others = {name: _array(column) for name, column in cells.items() if name not in task.features}
    return Examples(
        x, torch.from_numpy(labels(path, cells[task.label], task)), others, STANDARDIZED
    )


def labels(path: Path, cells: Sequence[object], task: TaskSection) -> NDArray[np.int64]:
    """Labels as 0 … classes − 1: places in `task.labels`, or the integers themselves where that is
    empty.

    Raises:
        DataError: something is no label.
    """
    names = [columns.text(value).strip() for value in cells]
    if "" in names:
        raise DataError(f"{path}, row {names.index('') + 1}, has no label; leave it out.")
    if task.labels:
        return _numbered(path, names, task.labels)
    matches = [INTEGER.fullmatch(name) for name in names]
    try:
        numbers = np.array([int(match[1]) if match else None for match in matches], np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{path}: labels are not integers; name the classes in task.labels."
        ) from None
    if numbers.min() < 0 or numbers.max() >= task.classes:
        span = f"{numbers.min()} to {numbers.max()}"
        raise DataError(f"{path}: labels go from {span}; 0 … {task.classes - 1} is expected.")
    return numbers


def _numbered(path: Path, names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """The places of names among the classes; true and false in any letters."""
    known = [composed(name.strip()) for name in classes]
    names = [composed(name.strip()) for name in names]
    if {name.lower() for name in known} == TRUTH.keys():
        known = [name.lower() for name in known]
        names = [name.lower() for name in names]
    number = {name: k for k, name in enumerate(known)}
    places = [number.get(name, number.get(WHOLE.sub("", name))) for name in names]
    if None in places:
        row = places.index(None)
        what = repr(names[row]) if len(names[row]) <= QUOTED else "a long text"
        raise DataError(
            f"{path}, row {row + 1}: {what} is none of task.labels ({', '.join(classes)})."
        )
    return np.array(places, np.int64)


def _scaled(
    path: Path, name: str, cells: Sequence[object], center: float, scale: float
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = ((numbers(path, name, cells) - center) / scale).astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
        raise DataError(
            f"{path}: column {name!r} has empty or infinite values (see row {row}); fill them "
            "before."
        )
    return values


def _array(cells: Sequence[object]) -> NDArray[Any]:
    """A column by which a set can be divided: integers in their order, or else text."""
    try:
        return np.array(
            [int(cell) if isinstance(cell, (int, str)) else None for cell in cells], np.int64
        )
    except (TypeError, ValueError, OverflowError):
        return np.array([columns.text(cell) for cell in cells], dtype=object)
