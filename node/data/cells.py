"""Cells of a table as numbers, dates and names. No cell is ever quoted in a sentence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time

import numpy as np
from numpy.typing import NDArray

from node.data.columns import text
from node.encoding import composed

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
AMBIGUOUS = (
    "all commas of the column may separate thousands or decimals; write numbers with a point"
)
WHOLE = re.compile(r"\.0+$")
"""What floats and decimals write behind whole numbers."""


def numbers(cells: Sequence[object]) -> tuple[NDArray[np.float64], dict[int, str]]:
    """The cells as numbers [n], NaN where there is none; and row -> why its cell is no number. With
    decimal commas where they can be nothing else.
    """
    mark = _decimal_mark(cells)
    pointed = cells
    if mark == ",":
        pointed = [_pointed(cell) if isinstance(cell, str) else cell for cell in cells]
    values = [_number(cell) for cell in pointed]
    wrong = {row: _why(cells[row], mark) for row, value in enumerate(values) if value is None}
    return np.array(values, np.float64), wrong


def is_undecided(cells: Sequence[object]) -> bool:
    """Could one row more or less change how others are read? Then none of them is: where commas may
    separate thousands or decimals, or decimal commas stand beside numbers with a point. Such rows
    can't be skipped, as that would let one record decide on many.
    """
    mark = _decimal_mark(cells)
    if mark != ",":
        return mark is None
    texts = [cell for cell in cells if isinstance(cell, str) and "." in cell]
    return any(_number(cell) is not None for cell in texts)


def dates(
    cells: Sequence[object], pattern: str = ""
) -> tuple[list[datetime | None], dict[int, str]]:
    """The cells as dates, None where there is none; and row -> why its cell is no date.

    Args:
        pattern: as strptime has it; empty: ISO 8601.
    """
    values: list[datetime | None] = []
    wrong: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            values.append(None if is_empty(cell) else _date(cell, pattern))
        except (ValueError, re.error):  # strptime makes a regular expression of its pattern
            values.append(None)
            wrong[row] = f"{pattern or 'a date as 2024-05-31'} is expected"
    return values, wrong


def places(cells: Sequence[object], names: Sequence[str]) -> list[int | None]:
    """The place of each cell among the names, None where it is none of them. True and false may be
    in any letters, and 1.0 is 1.
    """
    known = [composed(name.strip()) for name in names]
    texts = [composed(text(cell).strip()) for cell in cells]
    if {name.lower() for name in known} == TRUTH.keys():
        known = [name.lower() for name in known]
        texts = [cell.lower() for cell in texts]
    number = {name: place for place, name in enumerate(known)}
    return [number.get(cell, number.get(WHOLE.sub("", cell))) for cell in texts]


def is_empty(cell: object) -> bool:
    """Does it stand for nothing?"""
    return text(cell).strip().lower() in EMPTY


def _date(cell: object, pattern: str) -> datetime:
    """Raises ValueError: it is none."""
    if isinstance(cell, datetime):
        return cell
    if isinstance(cell, date):
        return datetime.combine(cell, time())
    written = text(cell).strip()
    if pattern:
        return datetime.strptime(written, pattern)
    return datetime.fromisoformat(written).replace(tzinfo=None)


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


def _why(cell: object, mark: str | None) -> str:
    """What keeps a cell from being a number, without the cell."""
    if isinstance(cell, str):
        if mark is None and "," in cell:
            return AMBIGUOUS
        if "%" in cell:
            return "write percentages as plain numbers"
        if EITHER.fullmatch(cell):
            own = "comma" if "," in cell else "point"
            return (
                f"its {own} may separate thousands or decimals; write a plain number, in one way "
                "in all rows"
            )
        if DECIMAL.fullmatch(cell):
            own, other = ("comma", "points") if "," in cell else ("point", "commas")
            return f"it has a decimal {own}, other rows decimal {other}; write all in one way"
        if GROUPED.fullmatch(cell):
            return "it separates thousands; write a plain number"
    return "write a plain number, or encode categories before (one column each)"
