"""Rows of a table that can't be learned from: skipped up to the share that run.toml allows, and
counted, never without a word to their owner.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peer.errors import DataError


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row can't be used, without a cell of it."""

    kind: str
    """By what such rows are counted, e.g. "column 'dose' is not numeric"."""
    sentence: str
    """Of this row alone; it stands behind the file's name."""


BadRows: TypeAlias = Mapping[int, BadRow]
"""Row, from 0 -> what is wrong with it."""


def first_of(*many: BadRows) -> BadRows:
    """All of them together; of a row the first that was found."""
    together: dict[int, BadRow] = {}
    for rows in many:
        for row, why in rows.items():
            together.setdefault(row, why)
    return together


def counted(bad: BadRows) -> str:
    """How many rows there are of each kind, e.g. "no label: 2, …"."""
    counts = Counter(why.kind for why in bad.values())
    return ", ".join(f"{kind}: {n}" for kind, n in counts.most_common())


def usable(path: Path, n: int, bad: BadRows, share: float) -> NDArray[np.int64]:
    """The other rows' numbers, of n; those that are bad are told on standard error.

    Raises:
        DataError: they are more than this share.
    """
    if not bad:
        return np.arange(n)
    first = next(iter(bad.values()))
    if not share:
        raise DataError(f"{path}{first.sentence}")
    if len(bad) > share * n:
        raise DataError(
            f"{path}: {len(bad)} of {n} rows can't be used ({counted(bad)}), more than "
            f"task.bad_rows = {share:g} allows; the first: {path.name}{first.sentence}"
        )
    print(
        f"warning: {path}: {len(bad)} of {n} rows are skipped ({counted(bad)}).",
        file=sys.stderr,
        flush=True,
    )
    return np.setdiff1d(np.arange(n), np.fromiter(bad, np.int64))
