"""Rows of text: parquet, CSV, JSONL, plain text files and folders of them.

Nothing here knows a tokenizer, so that row numbers mean the same whatever model learns from them.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.config import TaskSection
from node.data.examples import for_testing
from node.data.tables import labels, read_values
from peer.errors import ConfigurationError, DataError

TABLES = (".parquet", ".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
PLAIN = (".txt", ".md")


@dataclass(frozen=True, slots=True)
class Texts:
    """Columns of strings [n], and y, int64 [n]: labels where the run names some, else the number of a row's language
    or file, by which a set is split and divided."""

    y: Tensor
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Texts:
        return Texts(self.y[torch.from_numpy(rows)], {name: column[rows] for name, column in self.columns.items()})

    def split(self) -> tuple[Texts, Texts]:
        """(train, test): a fifth of every kind in test."""
        held = for_testing(self.y.numpy())
        return self.take(np.setdiff1d(np.arange(len(self)), held)), self.take(held)

    def balanced(self, size: int | None) -> Texts:
        """The first rows of each kind in turn, `size` in all; None or too many: all."""
        if size is None or size >= len(self):
            return self
        kinds = self.y.numpy()
        turn = np.zeros(len(self), np.int64)  # how many of its kind come before a row
        for kind in np.unique(kinds):
            turn[kinds == kind] = np.arange((kinds == kind).sum())
        return self.take(np.sort(np.lexsort((kinds, turn))[:size]))

    def digest(self) -> str:
        """SHA-256 (hex) of all columns and labels."""
        found = hashlib.sha256(self.y.numpy().tobytes())
        for name in sorted(self.columns):
            found.update(json.dumps([name, *map(str, self.columns[name])]).encode())
        return found.hexdigest()


def public(task: TaskSection) -> tuple[Texts, Texts]:
    """(train, test) of the run's public file.

    Raises:
        ConfigurationError, DataError: as `read`.
    """
    assert task.text is not None
    if task.path is None:
        raise ConfigurationError('task.data = "file" needs task.path: a public file or folder to divide.')
    found = read(task.path, task)
    if task.text.test:
        return found, read(task.text.test, task)
    train, test = found.split()
    if not len(test):
        raise DataError(f"{task.path} has so few rows that a fifth of a kind is none to test on; name task.text.test.")
    return train, test


def read(path: Path, task: TaskSection) -> Texts:
    """The rows of a file, or of all files of a folder, which then have a column `file`.

    Raises:
        ConfigurationError: pyarrow is missing.
        DataError: it is missing, damaged, empty, of no known kind, a column that the run names is not there, or a row
            has nothing to learn.
    """
    assert task.text is not None
    files = sorted(it for it in path.iterdir() if it.suffix in READERS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no text: files that end in {', '.join(READERS)} are expected.")
    parts = [_file(file, task.text.piece) for file in files]
    if missing := [name for name in _named(task) if any(name not in part for part in parts)]:
        known = ", ".join(sorted(parts[0])) or "none"
        raise DataError(f"{path} has no column {missing[0]!r}; it has {known} (see task.text).")
    for file, part in zip(files, parts, strict=True):
        if len(empty := np.flatnonzero(part[task.text.answer] == "")):
            raise DataError(
                f"{file}, row {empty[0] + 1}, has nothing in the column {task.text.answer!r}; leave it out."
            )
    sizes = [len(next(iter(part.values()))) for part in parts]
    if not sum(sizes):
        raise DataError(f"{path} has no rows: there is nothing to learn from or to test on.")
    shared = set.intersection(*map(set, parts))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in sorted(shared)}
    kinds = np.repeat(np.arange(len(files)), sizes)
    if path.is_dir():
        columns["file"] = np.repeat(np.array([file.name for file in files], dtype=object), sizes)
    if task.labels:
        kinds = labels(path, columns[task.text.answer], task)
    return Texts(torch.from_numpy(kinds), columns)


def _named(task: TaskSection) -> list[str]:
    """Columns that the run names."""
    assert task.text is not None
    return [*task.text.prompt, task.text.answer]


def _file(file: Path, piece: int) -> dict[str, NDArray[Any]]:
    reader = READERS.get(file.suffix)
    if reader is None:
        raise DataError(f"{file} is of no known kind; a folder or a file in {', '.join(READERS)} is expected.")
    try:
        return reader(file, piece)
    except FileNotFoundError:
        raise DataError(f"There is no data file {file}; check task.path, or data.path in the node's file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text; convert it before.") from None
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}).") from None


def _table(file: Path, piece: int) -> dict[str, NDArray[Any]]:
    return {name: strings(values) for name, values in read_values(file).items()}


def _lines(file: Path, piece: int) -> dict[str, NDArray[Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            raise DataError(f"{file}, line {number}, is no JSON.") from None
        if row is not None and (not isinstance(row, dict) or (rows and set(row) != set(rows[0]))):
            raise DataError(f"{file}, line {number}: an object with the same keys on every line is expected.")
        if row is not None:
            rows.append(row)
    if not rows:
        raise DataError(f"{file} has no rows: there is nothing to learn from or to test on.")
    return {name: strings([row[name] for row in rows]) for name in rows[0]}


def _plain(file: Path, piece: int) -> dict[str, NDArray[Any]]:
    return {"text": strings(pieces(_text(file), piece))}


def _text(file: Path) -> str:
    """With or without a byte-order mark."""
    return file.read_text(encoding="utf-8-sig")


READERS: Mapping[str, Callable[[Path, int], dict[str, NDArray[Any]]]] = {
    **dict.fromkeys(TABLES, _table),
    **dict.fromkeys(LINES, _lines),
    **dict.fromkeys(PLAIN, _plain),
}
"""How a file ends -> its columns. A new kind of text: one function, one line here."""


def pieces(text: str, longest: int) -> list[str]:
    """The paragraphs of a text, those that are too long cut where words end."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        if len(whole := paragraph.strip()) <= longest:
            found += [whole] if whole else []
        else:
            found += textwrap.wrap(whole, longest)
    return found


def strings(values: Sequence[Any]) -> NDArray[Any]:
    """Values as an array of Python strings [n], empty where there is none (null, not a number)."""
    found = np.empty(len(values), dtype=object)
    found[:] = ["" if value is None or value != value else str(value) for value in values]
    return found
