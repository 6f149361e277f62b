"""Whose each row is: the privacy unit (`task.unit`), a person, device or hospital.

Names are compared as text, without spaces around them, composed, and 7.0 is 7. Two that are one
person's count as two persons, for whom ε then holds apart; so what may be the same is taken for the
same, and a row without a name is never learned from. No name is ever quoted in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from node.data.bad_rows import BadRow, BadRows
from node.data.cells import WHOLE, is_empty
from node.data.columns import Ragged, text
from node.encoding import composed

LIKELY = re.compile(
    r"(.*[_\W])?(id|mrn|patient|person|subject|participant|user|client|customer|device|household"
    r"|writer|author|speaker)([_\W]?(id|no|nr|number|code|name))?s?",
    re.IGNORECASE,
)
"""How columns are called that say whose a row is."""


def numbered(names: Iterable[object]) -> NDArray[np.int64]:
    """The unit of each row, int64 [n], numbered from 0 in the order of their names."""
    texts = np.array([WHOLE.sub("", composed(text(name).strip())) for name in names], dtype=object)
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def nameless(names: Iterable[object], column: str) -> BadRows:
    """The rows of which nobody is named."""
    kind = f"column {column!r} (task.unit) is empty"
    return {
        row: BadRow(kind, f", row {row + 1}: {kind}, so that nobody knows whose row it is.")
        for row, name in enumerate(names)
        if is_empty(name)
    }


def whole(units: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The row numbers of each unit, in the order of the units' numbers."""
    order = np.argsort(units, kind="stable")
    _, counts = np.unique(units, return_counts=True)
    return np.split(order, np.cumsum(counts)[:-1])


def likely(column: str, cells: Iterable[object]) -> bool:
    """Does a column seem to say whose a row is, by its name, and say so of several rows?"""
    names = [text(cell) for cell in cells if not isinstance(cell, Ragged) and not is_empty(cell)]
    return bool(LIKELY.fullmatch(column)) and 1 < len({*names}) < len(names)
