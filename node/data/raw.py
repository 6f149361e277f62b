"""A row of a table or of texts as bytes, by which it is known again: in another order of columns or
rows, under another schema, split, or saved again by another program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache

from node.data.cells import EMPTY
from node.data.columns import text
from node.encoding import composed

MIDNIGHT = re.compile(r"[ T]00:00:00(\.0+)?$")
"""What a date has behind it in files that know times only."""


def row(cells: Mapping[str, object]) -> bytes:
    """The cells in which there is something, by the names of their columns."""
    plain = [(name, _plain(cells[name])) for name in sorted(cells)]
    filled = [f"{name}\0{cell}" for name, cell in plain if cell]
    return "\0".join(filled).encode("utf-8", "surrogatepass")


def _plain(cell: object) -> str:
    """1.50 is 1.5. Empty where there is nothing."""
    written = cell if isinstance(cell, str) else text(cell)
    try:
        number = float(written)
    except ValueError:
        return _word(written)
    return _number(number)


def _number(number: float) -> str:
    """Six digits of it, which files of half the precision agree in; all of a whole number."""
    if number != number:
        return ""
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else f"{number:.6g}"


@lru_cache(maxsize=1 << 16)
def _word(cell: str) -> str:
    """What is no number, unless its comma is a decimal one."""
    stripped = cell.strip()
    if stripped.lower() in EMPTY:
        return ""
    with suppress(ValueError):
        return _number(float(stripped.replace(",", ".")))
    return MIDNIGHT.sub("", composed(stripped)).casefold()
