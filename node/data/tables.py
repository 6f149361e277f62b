"""Tables (CSV, Parquet): numeric columns, standardized by PUBLIC constants, and a column of labels.

The constants stand in the run file, equal at all nodes: a mean computed from private rows would be
a release that no ledger knows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import TaskSection
from node.data import columns
from node.data.examples import STANDARDIZED, Examples
from node.encoding import composed
from peer.errors import ConfigurationError, DataError

EMPTY = {"", "na", "n/a", "nan", "none", "null", "-"}
"""Cells, in small letters, that stand for nothing where a number is expected."""
TRUTH = {"false": 0.0, "true": 1.0}
DECIMAL = re.compile(r"\s*[+-]?\d*(?P<mark>[.,])\d+([eE][+-]?\d+)?\s*")
GROUPED = re.compile(
    r"\s*[+-]?\d{1,3}(?P<group>[.,'\u2019 \u00a0\u202f])\d{3}(?P<more>(?P=group)\d{3})*"
    r"((?!(?P=group))(?P<mark>[.,])\d+)?\s*"
)
"""With separated thousands."""
EITHER = re.compile(r"\s*[+-]?[1-9]\d{0,2}[.,]\d{3}\s*")
"""Its mark may separate thousands or decimals."""
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
        values = ((_numbers(path, name, cells) - center) / scale).astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
        raise DataError(
            f"{path}: column {name!r} has empty or infinite values (see row {row}); fill them "
            "before."
        )
    return values


def _numbers(path: Path, name: str, cells: Sequence[object]) -> NDArray[np.float64]:
    """The cells as numbers, NaN where there is nothing; with decimal commas where they can be
    nothing else.

    Raises:
        DataError: something is no number, or all commas may separate thousands as well.
    """
    mark = _decimal_mark(cells)
    if mark is None:
        raise DataError(
            f"{path}: column {name!r} is not numeric in row {_first_comma(cells)}: all commas of "
            "the column may separate thousands or decimals; write numbers with a point."
        )
    pointed = cells
    if mark == ",":
        pointed = [_pointed(cell) if isinstance(cell, str) else cell for cell in cells]
    values = [_number(cell) for cell in pointed]
    if None in values:
        bad = values.index(None)
        raise DataError(
            f"{path}: column {name!r} is not numeric in row {bad + 1}: {_why(cells[bad])}."
        )
    return np.array(values, np.float64)


def _number(cell: object) -> float | None:
    """None: it is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        small = cell.strip().lower()
        if small in EMPTY or small in TRUTH:
            return TRUTH.get(small, math.nan)
        if "_" in cell:  # Python would read 1_000
            return None
    try:
        return float(cell)  # type: ignore[arg-type]  # Parquet has numbers of many types
    except (TypeError, ValueError):
        return None


def _pointed(cell: str) -> str:
    """A number with a decimal comma as Python writes it; one with a point is none."""
    return "no number" if "." in cell else cell.replace(",", ".")


def _first_comma(cells: Sequence[object]) -> int:
    """The number of the first row with a comma."""
    return next(row for row, cell in enumerate(cells, 1) if isinstance(cell, str) and "," in cell)


def _decimal_mark(cells: Sequence[object]) -> str | None:
    """Comma or point, by the majority of the cells that can be read in one way only.

    None: there is no such cell, but commas that may separate thousands or decimals.
    """
    texts = [cell for cell in cells if isinstance(cell, str)]
    with_comma = [cell for cell in texts if "," in cell]
    if not with_comma:
        return "."
    marks = Counter(_mark(cell) for cell in texts)
    if not marks[","] and not marks["."] and any(map(EITHER.fullmatch, with_comma)):
        return None
    return "," if marks[","] and marks[","] >= marks["."] else "."


def _mark(cell: str) -> str:
    """What separates a cell's decimals; empty where nothing does, or it may as well separate
    thousands.
    """
    if EITHER.fullmatch(cell):
        return ""
    if match := DECIMAL.fullmatch(cell):
        return match["mark"]
    match = GROUPED.fullmatch(cell)
    if not match:
        return ""
    if match["mark"] or not match["more"]:
        return match["mark"] or ""
    return {",": ".", ".": ","}.get(match["group"], "")


def _why(cell: object) -> str:
    """What keeps a cell from being a number, without the cell."""
    if isinstance(cell, str):
        if "%" in cell:
            return "write percentages as plain numbers"
        if EITHER.fullmatch(cell):
            mark = "comma" if "," in cell else "point"
            return (
                f"its {mark} may separate thousands or decimals; write a plain number, in one way "
                "in all rows"
            )
        if DECIMAL.fullmatch(cell):
            mark, other = ("comma", "points") if "," in cell else ("point", "commas")
            return f"it has a decimal {mark}, other rows decimal {other}; write all in one way"
        if GROUPED.fullmatch(cell):
            return "it separates thousands; write a plain number"
    return "write a plain number, or encode categories before (one column each)"


def _array(cells: Sequence[object]) -> NDArray[Any]:
    """A column by which a set can be divided: integers in their order, or else text."""
    try:
        return np.array(
            [int(cell) if isinstance(cell, (int, str)) else None for cell in cells], np.int64
        )
    except (TypeError, ValueError, OverflowError):
        return np.array([columns.text(cell) for cell in cells], dtype=object)
