"""Tables (CSV, Parquet): numeric columns, standardised by PUBLIC constants, and a column of labels.

The constants stand in the run file, equal at all nodes: a mean computed from private rows would be a release that no
ledger knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import TaskSection
from node.data.examples import STANDARDIZED, Examples
from peer.errors import ConfigurationError, DataError

C = TypeVar("C")


def table(path: Path, task: TaskSection) -> Examples:
    """The rows as images of 1 × 1 × features: (value − centre)/scale in the order of `task.features`.

    Raises:
        ConfigurationError: the run file names no features, or pyarrow is missing.
        DataError: the file is missing, damaged, lacks a column, or holds what is no number or no label.
    """
    if not task.features:
        raise ConfigurationError(
            "A table needs [task.features] in the run file: column = [centre, scale], public constants of each."
        )
    found = read_columns(path)
    if missing := [name for name in (*task.features, task.label) if name not in found]:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}; see task.features and task.label.")
    if not (n := len(found[task.label])):
        raise DataError(f"{path} has no rows.")
    values = [_numbers(path, name, found[name], *task.features[name]) for name in task.features]
    x = torch.from_numpy(np.stack(values, axis=1)).view(n, 1, 1, len(values))
    others = {name: column for name, column in found.items() if name not in task.features}
    return Examples(x, torch.from_numpy(labels(path, found[task.label], task)), others, STANDARDIZED)


def labels(path: Path, found: NDArray[Any], task: TaskSection) -> NDArray[np.int64]:
    """Labels as 0 … classes − 1: places in `task.labels`, or the integers themselves where that is empty.

    Raises:
        DataError: something is no label.
    """
    if task.labels:
        number = {name: k for k, name in enumerate(task.labels)}
        if unknown := {str(value) for value in found} - number.keys():
            raise DataError(f"{path}: {sorted(unknown)[0]!r} is none of task.labels ({', '.join(task.labels)}).")
        return np.array([number[str(value)] for value in found], np.int64)
    if found.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are not integers; name the classes in task.labels.")
    if found.min() < 0 or found.max() >= task.classes:
        raise DataError(f"{path}: labels go from {found.min()} to {found.max()}; 0 … {task.classes - 1} is expected.")
    return found.astype(np.int64)


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """All columns of a table, each [n]. Raises as `_columns`."""
    return _columns(path, lambda column: column.to_numpy())


def read_values(path: Path) -> dict[str, list[Any]]:
    """The same as Python values, None where a cell is empty. Raises as `_columns`."""
    return _columns(path, lambda column: column.to_pylist())


def _columns(path: Path, form: Callable[[Any], C]) -> dict[str, C]:
    """Each column in this form.

    Raises:
        ConfigurationError: pyarrow is missing.
        DataError: the file is missing or damaged.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise ConfigurationError("Tables need pyarrow: pip install 'peerpoise[tables]'.") from None
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            comma = csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            table = csv.read_csv(path, parse_options=comma)
        return {name: form(table.column(name)) for name in table.column_names}
    except FileNotFoundError:
        raise DataError(f"There is no data file {path}; check data.path in the node's file.") from None
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path} can't be read as a table: {reason}.") from None


def _numbers(path: Path, name: str, found: NDArray[Any], centre: float, scale: float) -> NDArray[np.float32]:
    if found.dtype.kind not in "iufb":
        raise DataError(f"{path}: column {name!r} is not numeric; encode it before (one column per category).")
    values = ((found.astype(np.float64) - centre) / scale).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: column {name!r} has empty or infinite values; fill them before.")
    return values
