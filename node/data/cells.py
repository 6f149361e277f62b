"""Cells of a table as numbers. No cell is ever quoted in a sentence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peer.errors import DataError

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


def numbers(path: Path, name: str, cells: Sequence[object]) -> NDArray[np.float64]:
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
