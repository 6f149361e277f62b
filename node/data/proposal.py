"""`peerpoise schema`: a proposal for [task] and [task.features], from the rows of ONE table or from
a public description of its columns (Table Schema, https://specs.frictionlessdata.io/table-schema).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import floor, isfinite, log10
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import ValidationError

from node.config import TaskSection, sentence
from node.data import cells as parsing
from node.data import columns, units
from node.encoding import Json, read_text
from peer.errors import DataError

READABLE = 0.9
"""Share of a column's cells that have to be numbers, or dates, for it to be proposed as such."""
MOST = 20
"""Categories, or classes, of a column; one with more is likely text."""
RARE = 5
"""A category of fewer rows is not proposed: it could tell of one person."""
CLIP = 5.0
LARGEST = 300
"""Power of ten to which anything can be rounded."""
NORMAL = 1.349
"""The middle half of a normal distribution, in standard deviations."""
LOOKED = """\
# Proposed by `peerpoise schema` from the {n} rows of {name}. IT LOOKED AT THESE DATA: centers,
# scales and lists below tell something of them, which no ε counts. Before others see this file,
# put public figures in their place (reference ranges, code lists, the study's protocol), and
# agree on them: every site learns with these.
"""
PUBLIC = """\
# Proposed by `peerpoise schema` from the description {name}; it looked at no data.
"""


def propose(path: Path, label: str) -> str:
    """[task] for the columns of a file, as TOML; the comment above says what was looked at.

    Raises:
        ConfigurationError: pyarrow is missing, which Parquet needs.
        DataError: the file can't be read, or has no such label.
    """
    if columns.ending(path) == ".json":
        head, task = PUBLIC.format(name=path.name), described(path, label)
    else:
        cells = columns.read(path, (label,))
        _refuse_other_encodings(path, cells)
        n = len(cells[label])
        head, task = LOOKED.format(n=n, name=path.name), looked_at(path, cells, label)
    if not any(kind != {"kind": "ignore"} for kind in task["features"].values()):
        raise DataError(f"{path} has no column to learn from but {label!r}.")
    try:
        TaskSection.model_validate(task)
    except ValidationError as error:
        raise DataError(f"{path}: {sentence(error, TaskSection, within='task')}") from None
    return head + tomli_w.dumps({"task": task})


# -- from rows


def looked_at(path: Path, cells: columns.Columns, label: str) -> Json:
    """[task] by what the cells look like, and what their columns are called.

    Raises:
        DataError: nothing can be learned from such labels.
    """
    others = {name: column for name, column in cells.items() if name != label}
    features = {name: _feature(column) for name, column in others.items()}
    unit = {}
    if whose := next((name for name, column in others.items() if units.likely(name, column)), ""):
        unit, features[whose] = {"unit": whose}, {"kind": "ignore"}
    target = _label(cells[label])
    if "labels" in target and not 2 <= len(target["labels"]) <= MOST:
        raise DataError(
            f"{path}: the column {label!r} has {len(target['labels'])} different texts; 2 to "
            f"{MOST} classes, or numbers, are expected."
        )
    return {**target, **unit, "data": "own", "label": label, "features": features}


def _refuse_other_encodings(path: Path, cells: columns.Columns) -> None:
    texts = [columns.text(cell) for name, column in cells.items() for cell in (name, *column)]
    if not all(map(columns.is_unicode, texts)):
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8.")


def _label(cells: Sequence[object]) -> Json:
    values, wrong = parsing.numbers(cells)
    known = values[np.isfinite(values)]
    whole = bool((known == known.round()).all())
    if len(wrong) < (1 - READABLE) * len(cells) and not (whole and len(np.unique(known)) <= MOST):
        scale = _scale(known)
        return {"name": "regression", "target": [_center(known, scale), scale]}
    if not wrong and len(known) and whole and known.min() >= 0:
        return {"classes": max(2, int(known.max()) + 1)}
    return {"labels": sorted({columns.text(cell).strip() for cell in cells} - {""})}


def _feature(cells: Sequence[object]) -> object:
    given = [cell for cell in cells if not parsing.is_empty(cell)]
    enough = READABLE * len(given)
    values, wrong = parsing.numbers(cells)
    known = values[np.isfinite(values)]
    if len(known) and len(given) - len(wrong) >= enough:
        gaps = len(given) < len(cells)
        return {"kind": "ignore"} if _is_number_of_row(known) else _number(known, gaps)
    dates, _ = parsing.dates(cells)
    if given and sum(date is not None for date in dates) >= enough:
        return {"kind": "date", "parts": ["year", "month"], "flag": len(given) < len(cells)}
    counts = Counter(columns.text(cell).strip() for cell in given)
    common = sorted(value for value, n in counts.items() if n >= RARE)
    if common and len(common) <= MOST and sum(counts[value] for value in common) >= enough:
        return {"kind": "category", "values": common, "unknown": "slot"}
    return {"kind": "ignore"}


def _number(known: NDArray[np.float64], gaps: bool) -> object:
    if set(np.unique(known)) <= {0.0, 1.0}:
        center, scale = 0.0, 1.0
    else:
        scale = _scale(known)
        center = _center(known, scale)
    number = {"kind": "number", "center": center, "scale": scale, "clip": CLIP}
    return {**number, "missing": center, "flag": True} if gaps else number


def _is_number_of_row(known: NDArray[np.float64]) -> bool:
    """Integers that are all different are likely somebody's number."""
    return len(known) > MOST and len(np.unique(known)) == len(known) and not (known % 1).any()


def _center(values: NDArray[np.float64], scale: float) -> float:
    """The median, to the place of the scale's first digit: at most half a scale aside."""
    if not len(values):
        return 0.0
    return round(float(np.median(values)), -min(floor(log10(scale)), LARGEST))


def _scale(values: NDArray[np.float64]) -> float:
    """Of the middle half; of all where it is constant."""
    if not len(values):
        return 1.0
    low, high = np.quantile(values, (0.25, 0.75))
    with np.errstate(over="ignore"):
        return _round(float((high - low) / NORMAL) or float(values.std())) or 1.0


def _round(value: float) -> float:
    """To two digits: enough to scale by, and less to tell of."""
    return round(value, 1 - floor(log10(abs(value)))) if value and isfinite(value) else 0.0


# -- from a description


def described(path: Path, label: str) -> Json:
    """[task] by a Table Schema, alone or as the first resource of a data package.

    Raises:
        DataError: it is none, or has no such label.
    """
    try:
        document = json.loads(read_text(path))
        if "resources" in document:
            document = document["resources"][0]["schema"]
        fields = {field["name"]: field for field in document["fields"]}
        if label not in fields:
            raise DataError(f"{path} has no field {label!r}; name the label with --label.")
        target = _described_label(path, label, fields.pop(label))
        features = {name: _described(path, name, field) for name, field in fields.items()}
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the path.") from None
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        raise DataError(
            f'{path} is no Table Schema; {{"fields": [{{"name": …, "type": …}}, …]}} is expected.'
        ) from None
    return {**target, "data": "own", "label": label, "features": features}


def _described_label(path: Path, name: str, field: Json) -> Json:
    limits = field.get("constraints", {})
    if "enum" in limits:
        return {"labels": [columns.text(value) for value in limits["enum"]]}
    if field.get("type") == "boolean":
        return {"labels": ["false", "true"]}
    if field.get("type") == "integer":
        return {"classes": int(_limits(path, name, field)[1]) + 1}
    low, high = _limits(path, name, field)
    return {"name": "regression", "target": [(low + high) / 2, (high - low) / 4]}


def _described(path: Path, name: str, field: Json) -> object:
    limits = field.get("constraints", {})
    gaps = not limits.get("required", False)
    match field.get("type", "string"):
        case _ if "enum" in limits:
            values = [columns.text(value) for value in limits["enum"]]
            return {"kind": "category", "values": values, "unknown": "slot" if gaps else "error"}
        case "boolean":
            return {"kind": "category", "values": ["false", "true"], "unknown": "slot"}
        case "integer" | "number":
            low, high = _limits(path, name, field)
            center, scale = (low + high) / 2, (high - low) / 4
            number = {"kind": "number", "center": center, "scale": scale, "clip": CLIP}
            return {**number, "missing": center, "flag": True} if gaps else number
        case "date" | "datetime":
            return {"kind": "date", "parts": ["year", "month"], "flag": gaps}
    return {"kind": "ignore"}


def _limits(path: Path, name: str, field: Json) -> tuple[float, float]:
    """Raises DataError: it says nothing of the values that are to be expected."""
    limits = field.get("constraints", {})
    try:
        low, high = float(limits["minimum"]), float(limits["maximum"])
    except (LookupError, TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise DataError(
            f"{path}: the field {name!r} needs constraints.minimum and constraints.maximum: the "
            "range that is usual."
        )
    return low, high
