"""Data sets: one file each kind, one line in a table each.

Nothing here is random: a set that comes whole is always split into train and test the same way, so
that row numbers mean the same on every node. Nothing here is ever unpickled, except by
torchvision's own readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeVar

from node.config import DataSection, ReasoningSection, TaskSection
from node.data import arrays, columns, features, folders, raw, texts, units
from node.data.arrays import digits, npz, rows
from node.data.cifar import cifar_10
from node.data.examples import FAR, STANDARDIZED, Examples
from node.data.folders import images
from node.data.fortunes import read_fortunes
from node.data.idx import fashion_mnist, mnist
from node.data.questions import read_questions
from node.data.tables import table
from node.data.texts import Texts
from node.data.texts import public as public_texts
from node.data.texts import read as _read_texts
from node.data.torchvision import torchvision
from peer.errors import ConfigurationError, DataError

BUNDLED: Mapping[str, Callable[[], tuple[Examples, Examples]]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar_10,
}
"""name -> (train, test). A new public data set: one function, one line here."""
TEXTS: Mapping[str, Callable[[], tuple[Texts, Texts]]] = {"fortunes": read_fortunes}
"""The same, of text."""
Rows: TypeAlias = Examples | Texts
"""What can be divided among nodes: rows that have labels y, and columns."""
AnyRows = TypeVar("AnyRows", bound=Rows)


def public_sets(task: TaskSection) -> tuple[Rows, Rows]:
    """The training and the public test set of a data set that `up` and `simulate` may divide. With
    `task.held_out` both are parts of the training set.

    Raises:
        ConfigurationError: there is none of that name, or what carries it is not installed.
        DataError: its files are damaged.
    """
    return _public(task.model_dump_json())


@lru_cache(maxsize=2)
def _public(section: str) -> tuple[Rows, Rows]:
    task = TaskSection.model_validate_json(section)
    train, test = _whole(task)
    if train.units is None:
        train = _with_units(train, task, task.data)
    return train.split() if task.held_out else (train, test)


def _whole(task: TaskSection) -> tuple[Rows, Rows]:
    if task.data in TEXTS:
        return TEXTS[task.data]()
    if task.data == "questions":
        return read_questions((task.reasoning or ReasoningSection()).families)
    if task.data == "file" and task.text is not None:
        return public_texts(task)
    if task.data == "file":
        if task.path is None:
            raise ConfigurationError(
                'task.data = "file" needs task.path: a public file or folder to divide.'
            )
        return own(task.path, task).split()
    if task.data.startswith("torchvision:"):
        train, test = torchvision(task.data.removeprefix("torchvision:"))
        return _within_range(train, task, task.data), _within_range(test, task, task.data)
    if task.data not in BUNDLED:
        known = ", ".join([*sorted({*BUNDLED, *TEXTS, "questions"}), "torchvision:NAME", "file"])
        raise ConfigurationError(
            f"Unknown data set {task.data!r}; choose {known}, or own with data.path in the node's "
            "file."
        )
    train, test = BUNDLED[task.data]()
    return _within_range(train, task, task.data), _within_range(test, task, task.data)


def read_texts(path: Path, task: TaskSection) -> Texts:
    """The rows of text of a file or folder; with their units, if the task has one.

    Raises:
        ConfigurationError, DataError: as `node.data.texts.read`, or a row is nobody's.
    """
    return _with_units(_read_texts(path, task), task, str(path))


def own(path: Path, task: TaskSection) -> Examples:
    """The examples of a file or folder, by the kind of it; with their units, if the task has one.

    Raises:
        ConfigurationError: the run file says too little of it, or a package is missing.
        DataError: it is missing, damaged, or of no known kind.
    """
    return _with_units(_within_range(_read(path, task), task, str(path)), task, str(path))


def _with_units(rows: AnyRows, task: TaskSection, source: str) -> AnyRows:
    """The rows with their units, from the column or array that `task.unit` names; without one as
    they are.

    Raises:
        ConfigurationError: there is no such column.
        DataError: a row is nobody's.
    """
    if not task.unit:
        return rows
    if task.unit not in rows.columns:
        known = ", ".join(sorted({*rows.columns} - {task.label})) or "none"
        raise ConfigurationError(
            f"task.unit = {task.unit!r} is no column or array of {source}; beside what is learned "
            f"from it has {known}."
        )
    names = rows.columns[task.unit].tolist()
    for why in units.nameless(names, task.unit).values():
        raise DataError(f"{source}{why.sentence}")
    return replace(rows, units=units.numbered(names))


def raw_rows(path: Path, task: TaskSection) -> Iterator[bytes]:
    """Every row of a file or folder that a node of ours learns from, in a form that schema, order
    of columns, scale, and where it stands in the file don't change.

    Raises:
        ConfigurationError, DataError: as `own`, or as `read_texts`.
    """
    if task.text is not None:
        return map(raw.row, texts.rows(path, task))
    kind = _kind(path, task)
    if kind is table:
        return map(raw.row, columns.rows(path, (*features.learned(task), task.label)))
    if kind is images:
        return folders.rows(path, task)
    return (image.tobytes() for some in arrays.inputs(path) for image in some)


def _read(path: Path, task: TaskSection) -> Examples:
    kind = _kind(path, task)
    return npz(path, task.classes) if kind is npz else kind(path, task)


def _kind(path: Path, task: TaskSection) -> Callable[..., Examples]:
    """What reads such a file or folder: `table`, `images` or `npz`.

    Raises:
        DataError: nothing does.
    """
    if path.is_dir():
        is_table = task.features or (task.image_size is None and columns.is_dataset(path))
        return table if is_table else images
    if columns.ending(path) in (*columns.CSV, *columns.PARQUET, ".txt"):
        return table
    if path.suffix.lower() == ".npz" or not path.exists():
        return npz
    raise DataError(
        f"{path} is of no known kind; .npz, .csv, .tsv, .parquet or a folder of images is expected."
    )


def _within_range(examples: Examples, task: TaskSection, source: str) -> Examples:
    """The examples, if their values are in `task.value_range`, or else near to 0 … 1. Those of
    tables were looked at row by row.

    Raises:
        DataError: they are not. Their values are private: none is in the sentence.
    """
    if examples.values == STANDARDIZED:
        return examples
    low, high = task.value_range or (-FAR, FAR)
    unit = 1 if examples.x.is_floating_point() else 255
    lowest, highest = (values / unit for values in examples.x.aminmax(dim=0))
    outside = ((lowest < low) | (highest > high)).flatten()
    if not outside.any():
        return examples
    if task.value_range:
        raise DataError(
            f"{source}: x has values outside of task.value_range = [{low:g}, {high:g}]; scale them."
        )
    raise DataError(
        f"{source}: x has values beyond ±{FAR:g}; if they are 0 … 255, divide by 255 or save "
        "uint8, or else declare task.value_range."
    )


def digest(node: DataSection, task: TaskSection) -> str:
    """SHA-256 (hex) of what a node learns from: its own file, or the name and rows of a public set.

    Raises:
        DataError: a file can't be read.
    """
    sha = hashlib.sha256(task.data.encode())
    try:
        for file in _files(node):
            sha.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: sha)
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read ({error.strerror}); check [data] of the node."
        ) from None
    return sha.hexdigest()


def _files(node: DataSection) -> Iterator[Path]:
    """The files that a node learns from, each folder's in sorted order."""
    for path in (node.path, node.rows):
        if path is not None:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (file for file in inside if file.is_file())


__all__ = [
    "BUNDLED",
    "TEXTS",
    "Examples",
    "Rows",
    "Texts",
    "digest",
    "digits",
    "own",
    "public_sets",
    "raw_rows",
    "read_texts",
    "rows",
]
