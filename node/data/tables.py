"""Tables (CSV, Parquet): columns made inputs by PUBLIC constants, and a column of labels.

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
from node.config.features import NumberFeature
from node.data import columns, features, units
from node.data.bad_rows import BadRow, BadRows, first_of, usable
from node.data.cells import is_undecided, places
from node.data.examples import STANDARDIZED, Examples
from peer.errors import ConfigurationError, DataError

INTEGER = re.compile(r"([+-]?\d+)(\.0*)?")
LONGEST = 18
"""Characters of an integer that may be a label."""
QUOTED = 40
"""A label that is none may be shown if it is no longer: it may be another column's cell."""


def table(path: Path, task: TaskSection) -> Examples:
    """The rows as images of 1 × 1 × inputs, in the order of `task.features`; without bad ones.

    Raises:
        ConfigurationError: the run file names no features, or pyarrow is missing.
        DataError: the file is missing, damaged, lacks a column, or too many rows hold what is no
            number or no label.
    """
    cells = read(path, task)
    n = len(cells[task.label])
    x, bad = features.matrix(cells, task)
    y, unlabeled = (targets if task.target else labels)(cells[task.label], task)
    nameless = units.nameless(cells[task.unit], task.unit) if task.unit else {}
    bad = first_of(ragged(cells[task.label]), bad, unlabeled, nameless)
    if bad and task.bad_rows:
        _refuse_undecided(path, cells, task)
    kept = usable(path, n, bad, task.bad_rows)
    names = features.learned(task)
    others = {name: _array(column) for name, column in cells.items() if name not in names}
    images = torch.from_numpy(x).view(n, 1, 1, -1)
    examples = Examples(images, torch.from_numpy(y), others, STANDARDIZED)
    return examples.take(kept) if bad else examples


def _refuse_undecided(path: Path, cells: columns.Columns, task: TaskSection) -> None:
    """Raises DataError: rows are bad by how others are written, so they can't be skipped (see
    `cells.is_undecided`)."""
    numeric = [name for name, it in task.features.items() if isinstance(it, NumberFeature)]
    for name in [*numeric, *([task.label] if task.target else [])]:
        if is_undecided(cells[name]):
            raise DataError(
                f"{path}: column {name!r} has numbers in which a comma or point may separate "
                "decimals or thousands; write all with a decimal point, and nothing between "
                "thousands."
            )


def read(path: Path, task: TaskSection) -> columns.Columns:
    """The cells of the columns that a task learns from, of its labels and units; of public tables
    all.

    Raises:
        ConfigurationError, DataError: see `table`.
    """
    names = features.learned(task)
    if not names:
        raise ConfigurationError(
            "A table needs [task.features] in the run file: column = [center, scale], public "
            "constants of each; peerpoise schema proposes them."
        )
    named = (*names, task.label, *([task.unit] if task.unit else []))
    cells = columns.read(path, named, others=task.data != "own", ragged=True)
    if not cells[task.label]:
        raise DataError(f"{path} has no rows.")
    return cells


def ragged(cells: Sequence[object]) -> BadRows:
    """The rows that have another number of cells than the header."""
    kind = "another number of cells than the header"
    return {
        row: BadRow(
            kind,
            f" can't be read as a table: row {row + 1} has {cell.cells} cells, the header "
            f"{cell.header}.",
        )
        for row, cell in enumerate(cells)
        if isinstance(cell, columns.Ragged)
    }


def labels(cells: Sequence[object], task: TaskSection) -> tuple[NDArray[np.int64], BadRows]:
    """Labels as 0 … classes − 1, [n]: places in `task.labels`, or the integers themselves where
    that is empty; and the rows that have none.
    """
    names = [columns.text(cell).strip() for cell in cells]
    known = places(cells, task.labels) if task.labels else [_integer(name, task) for name in names]
    bad = {row: _no_label(names[row], row, task) for row, y in enumerate(known) if y is None}
    return np.array([y or 0 for y in known], np.int64), bad


def targets(cells: Sequence[object], task: TaskSection) -> tuple[NDArray[np.float32], BadRows]:
    """Numbers to learn, [n], centered and scaled by `task.target`; and the rows that have none."""
    assert task.target is not None
    center, scale = task.target
    y, bad = features.number(task.label, cells, NumberFeature(center=center, scale=scale), None)
    return y[:, 0], bad


def _integer(name: str, task: TaskSection) -> int | None:
    """None: it is no label."""
    match = INTEGER.fullmatch(name)
    number = int(match[1]) if match and len(match[1]) < LONGEST else -1
    return number if 0 <= number < task.classes else None


def _no_label(name: str, row: int, task: TaskSection) -> BadRow:
    if not name:
        return BadRow("no label", f", row {row + 1}, has no label; leave it out.")
    what = repr(name) if len(name) <= QUOTED else "a long text"
    if task.labels:
        expected = f"is none of task.labels ({', '.join(task.labels)})"
        return BadRow("no such label", f", row {row + 1}: {what} {expected}.")
    if INTEGER.fullmatch(name):
        expected = f"0 … {task.classes - 1} is expected"
        return BadRow("no such label", f", row {row + 1}: the label is {what}; {expected}.")
    do = "name the classes in task.labels"
    return BadRow("no such label", f": labels are not integers (see row {row + 1}); {do}.")


def _array(cells: Sequence[object]) -> NDArray[Any]:
    """A column by which a set can be divided: integers in their order, or else text."""
    try:
        return np.array(
            [int(cell) if isinstance(cell, (int, str)) else None for cell in cells], np.int64
        )
    except (TypeError, ValueError, OverflowError):
        return np.array([columns.text(cell) for cell in cells], dtype=object)
