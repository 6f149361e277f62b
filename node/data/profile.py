"""What the columns of one table look like beside `[task.features]`: for the eyes of its owner only,
as every figure is of private rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.config import TaskSection
from node.config.features import CategoryFeature, DateFeature, NumberFeature
from node.config.task import SUPERVISED
from node.data import cells as parsing
from node.data import columns, features, tables

NARROW, WIDE, ASIDE = 0.1, 10.0, 3.0
"""Spread and mean, after scaling, of a column that is likely in another unit; 1 and 0 are usual."""
OFTEN = 0.05
"""Share of rows from which on clipped or unknown values are remarked."""
NORMAL = 1.349
"""Quartile to quartile of a normal distribution, in deviations."""
OTHER_UNIT = "another unit?"
SHOWN = 5
"""Categories that are shown."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One column."""

    column: str
    text: str
    """Its figures."""
    doubt: str = ""
    """What may be wrong; empty: nothing is."""
    do: str = ""


def profiles(path: Path, task: TaskSection) -> Iterator[Profile]:
    """Every column that is learned from, and the labels. Cells that can't be read are left out.

    Raises:
        ConfigurationError, DataError: as `tables.read`.
    """
    cells = tables.read(path, task)
    for name in features.learned(task):
        feature = task.features[name]
        if isinstance(feature, NumberFeature):
            yield _number(name, cells[name], feature)
        elif isinstance(feature, CategoryFeature):
            yield _category(name, cells[name], feature)
        elif isinstance(feature, DateFeature):
            yield _date(name, cells[name], feature)
    yield (_target if task.target else _labels)(cells[task.label], task)


def in_other_units(path: Path | None, task: TaskSection) -> list[str]:
    """Own columns of numbers that look as if they were in another unit; for their owner only.

    Raises:
        ConfigurationError, DataError: as `tables.read`.
    """
    numeric = {name: it for name, it in task.features.items() if isinstance(it, NumberFeature)}
    if path is None or task.data != "own" or task.name not in SUPERVISED or not numeric:
        return []
    cells = tables.read(path, task)
    shown = [_number(name, cells[name], feature) for name, feature in numeric.items()]
    return [column.column for column in shown if column.doubt.startswith(OTHER_UNIT)]


def _number(name: str, cells: Sequence[object], feature: NumberFeature) -> Profile:
    values, wrong = parsing.numbers(cells)
    known = values[np.isfinite(values)]
    empty = _share(len(values) - len(known) - len(wrong), len(values))
    if not len(known):
        return Profile(
            name, f"{empty} missing", "the column has no number", f"see {name!r} in the file"
        )
    x = (known - feature.center) / feature.scale
    clipped = (np.abs(x) > feature.clip).mean() if feature.clip else 0.0
    texts = [f"mean {known.mean():.4g}, {known.min():.4g} … {known.max():.4g}", f"{empty} missing"]
    texts += [f"{clipped:.1%} clipped at ±{feature.clip:g}"] if feature.clip else []
    texts += [f"{_share(len(wrong), len(values))} unreadable"] if wrong else []
    texts.append(f"scaled {x.mean():.2f} ± {x.std():.2g}")
    text = "; ".join(texts)
    if doubt := _unit(x):
        return Profile(name, text, doubt, "compare its unit with center and scale in task.features")
    if clipped > OFTEN:
        return Profile(
            name, text, "many values are clipped", "a larger scale or clip, at all nodes"
        )
    return Profile(name, text)


def _unit(x: NDArray[np.float64]) -> str:
    """Why scaled values look as if they were in another unit; empty: they don't. Their middle half
    has to look so, too: a few large values are usual.
    """
    if len(np.unique(x)) <= 2:  # a flag has no unit
        return ""
    low, middle, high = np.quantile(x, (0.25, 0.5, 0.75))
    spreads = [float(x.std()), float(high - low) / NORMAL]
    spreads = spreads if spreads[1] else spreads[:1]  # more than half of them are one value
    if (widest := max(spreads)) < NARROW:
        times = f"{1 / widest:.0f} times" if widest else "infinitely"
        return f"{OTHER_UNIT} Its values are {times} narrower than its scale says"
    if (narrowest := min(spreads)) > WIDE:
        return f"{OTHER_UNIT} Its values are {narrowest:.0f} times wider than its scale says"
    if (aside := min(abs(float(x.mean())), abs(float(middle)))) > ASIDE:
        return f"{OTHER_UNIT} Its values lie {aside:.1f} scales away from center"
    return ""


def _category(name: str, cells: Sequence[object], feature: CategoryFeature) -> Profile:
    places = parsing.places(cells, feature.values)
    n = len(places)
    counts = Counter(place for place in places if place is not None)
    unlisted = [cell for cell, place in zip(cells, places, strict=True) if place is None]
    unknown = [columns.text(cell).strip() for cell in unlisted if not parsing.is_empty(cell)]
    shares = [f"{feature.values[k]} {_share(m, n)}" for k, m in counts.most_common(SHOWN)]
    text = (
        f"{', '.join(shares) or 'none of its categories'}; {_share(len(unknown), n)} unknown, "
        f"{_share(len(unlisted) - len(unknown), n)} missing"
    )
    if len(unknown) <= OFTEN * n:
        return Profile(name, text)
    kinds = len({*unknown})
    return Profile(
        name,
        text,
        f"{kinds} {'category is' if kinds == 1 else 'categories are'} not in task.features",
        "spell them as there, or have them added for all nodes (peerpoise schema lists them)",
    )


def _date(name: str, cells: Sequence[object], feature: DateFeature) -> Profile:
    dates, wrong = parsing.dates(cells, feature.format)
    known = [date for date in dates if date is not None]
    n = len(dates)
    text = f"{_share(n - len(known) - len(wrong), n)} missing, {_share(len(wrong), n)} unreadable"
    if not known:
        return Profile(
            name, text, "the column has no date", f"see {name!r} in the file, and its format"
        )
    first, last = (f"{moment(known):%Y-%m-%d}" for moment in (min, max))
    return Profile(name, f"{first} … {last}; {text}")


def _labels(cells: Sequence[object], task: TaskSection) -> Profile:
    y, bad = tables.labels(cells, task)
    known = np.delete(y, list(bad))
    counts = np.bincount(known, minlength=task.classes)
    names = task.labels or tuple(map(str, range(task.classes)))
    shares = [
        f"{name} {_share(int(n), len(known))}" for name, n in zip(names, counts, strict=True) if n
    ]
    text = f"{', '.join(shares) or 'none'}; {_share(len(bad), len(cells))} without a label"
    if (counts > 0).sum() > 1:
        return Profile(task.label, text)
    return Profile(
        task.label, text, "all rows have one label", "nothing, if that is so; else see task.label"
    )


def _target(cells: Sequence[object], task: TaskSection) -> Profile:
    assert task.target is not None
    center, scale = task.target
    return _number(task.label, cells, NumberFeature(center=center, scale=scale))


def _share(part: int, n: int) -> str:
    return f"{part / n if n else 0:.1%}"
