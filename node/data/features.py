"""Columns of a table as inputs of a model: a pure function of the cells and `[task.features]`.

Width and scale follow from the configuration alone. What a row becomes depends on that row, and on
whether its column has decimal commas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from math import pi
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.config import TaskSection
from node.config.features import AnyFeature, CategoryFeature, DateFeature, NumberFeature, Part
from node.data import cells as parsing
from node.data.bad_rows import BadRow, BadRows, first_of
from node.data.columns import Columns
from node.data.examples import FAR

Inputs: TypeAlias = NDArray[np.float32]
CYCLES: Mapping[Part, tuple[Callable[[datetime], float], float]] = {
    "month": (lambda date: date.month - 1, 12),
    "day": (lambda date: date.day - 1, 31),
    "weekday": (lambda date: date.weekday(), 7),
    "hour": (lambda date: date.hour + date.minute / 60, 24),
}
"""part -> (where a date is in the cycle, the cycle's length)."""
YEAR, DECADE = 2000, 10
"""A year is learned as (year − YEAR)/DECADE."""


def learned(task: TaskSection) -> list[str]:
    """The columns that are learned from, in their order."""
    return [name for name, feature in task.features.items() if feature.width]


def matrix(columns: Columns, task: TaskSection) -> tuple[Inputs, BadRows]:
    """The inputs of all rows [n, width], and the rows in which something is wrong."""
    parts = [_inputs(name, columns[name], task) for name in learned(task)]
    x = np.concatenate([inputs for inputs, _ in parts], axis=1)
    return x, first_of(*(bad for _, bad in parts))


def _inputs(name: str, cells: Sequence[object], task: TaskSection) -> tuple[Inputs, BadRows]:
    feature: AnyFeature = task.features[name]
    match feature:
        case NumberFeature():
            return number(name, cells, feature, task.value_range)
        case CategoryFeature():
            return one_hot(name, cells, feature)
        case DateFeature():
            return date_parts(name, cells, feature)
    raise AssertionError(f"{name} is not learned from")


def number(
    name: str,
    cells: Sequence[object],
    feature: NumberFeature,
    value_range: tuple[float, float] | None,
) -> tuple[Inputs, BadRows]:
    """(value − center)/scale, and the flag if there is one: [n, width]."""
    values, wrong = parsing.numbers(cells)
    missing = np.isnan(values)
    missing[list(wrong)] = False
    if feature.missing is not None:
        values[missing] = feature.missing
    with np.errstate(over="ignore"):
        x = ((values - feature.center) / feature.scale).astype(np.float32)
    bad = first_of(
        {row: _not_numeric(name, row, why) for row, why in wrong.items()},
        {row: _empty(name, row) for row in np.flatnonzero(~np.isfinite(x)).tolist()},
    )
    if feature.clip:
        x = x.clip(-feature.clip, feature.clip)
    flags = [missing.astype(np.float32)] if feature.flag else []
    return np.stack([x, *flags], axis=1), first_of(bad, _outside(name, x, value_range))


def one_hot(name: str, cells: Sequence[object], feature: CategoryFeature) -> tuple[Inputs, BadRows]:
    """1 in the place of each cell's category, the last one for any other: [n, width]."""
    places = parsing.places(cells, feature.values)
    unknown = [row for row, place in enumerate(places) if place is None]
    slots = np.array([feature.width - 1 if place is None else place for place in places], np.int64)
    x = np.eye(feature.width, dtype=np.float32)[slots]
    if feature.unknown == "slot":
        return x, {}
    return x, {row: _unknown(name, row) for row in unknown}


def date_parts(name: str, cells: Sequence[object], feature: DateFeature) -> tuple[Inputs, BadRows]:
    """The parts of each date, 0 where there is none, and the flag if there is one: [n, width]."""
    dates, wrong = parsing.dates(cells, feature.format)
    x = np.zeros((len(cells), feature.width), np.float32)
    bad = {row: _no_date(name, row, why) for row, why in wrong.items()}
    for row, date in enumerate(dates):
        if date is not None:
            inputs = [it for part in feature.parts for it in _part(date, part)]
            x[row, : len(inputs)] = inputs
        elif feature.flag:
            x[row, -1] = 1
        elif row not in bad:
            bad[row] = _empty(name, row)
    return x, bad


def _part(date: datetime, part: Part) -> tuple[float, ...]:
    if part == "year":
        return ((date.year - YEAR) / DECADE,)
    place, length = CYCLES[part]
    angle = 2 * pi * place(date) / length
    return float(np.sin(angle)), float(np.cos(angle))


def _outside(name: str, x: Inputs, declared: tuple[float, float] | None) -> BadRows:
    """The rows whose value is outside of `task.value_range`, or else beyond ±FAR."""
    low, high = declared or (-FAR, FAR)
    rows = np.flatnonzero((x < low) | (x > high)).tolist()
    if declared:
        range_, do = f"outside of task.value_range = [{low:g}, {high:g}]", "scale them"
    else:
        range_ = f"beyond ±{FAR:g}"
        do = "see its center and scale in task.features, or else declare task.value_range"
    what = f"column {name!r}, centered and scaled, has values {range_}"
    kind = f"column {name!r} is out of range"
    return {row: BadRow(kind, f": {what} (see row {row + 1}); {do}.") for row in rows}


def _not_numeric(name: str, row: int, why: str) -> BadRow:
    kind = f"column {name!r} is not numeric"
    return BadRow(kind, f": {kind} in row {row + 1}: {why}.")


def _no_date(name: str, row: int, why: str) -> BadRow:
    kind = f"column {name!r} is no date"
    return BadRow(kind, f": {kind} in row {row + 1}: {why}.")


def _empty(name: str, row: int) -> BadRow:
    return BadRow(
        f"column {name!r} is empty or infinite",
        f": column {name!r} has empty or infinite values (see row {row + 1}); fill them before, or "
        "say in task.features what they stand for.",
    )


def _unknown(name: str, row: int) -> BadRow:
    return BadRow(
        f"column {name!r} is of no known category",
        f": column {name!r} has in row {row + 1} none of the categories in task.features; add it "
        'there for all nodes, or set unknown = "slot".',
    )
