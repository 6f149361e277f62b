"""Rows of text: parquet, CSV, JSONL, plain text files and folders of them.

Nothing here knows a tokenizer, so that row numbers mean the same whatever model learns from them.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.config import TaskSection, TextSection
from node.config.templates import fields
from node.data import columns, conversations, unused
from node.data.bad_rows import usable
from node.data.columns import Nested, ending
from node.data.examples import test_rows
from node.data.tables import labels
from node.encoding import NotUtf8, read_text
from peer.errors import ConfigurationError, DataError

OBJECTS = (".jsonl", ".ndjson", ".json")
PLAIN = (".txt", ".md")
TEXT, MESSAGES = "text", "messages"
"""The usual column of a text, and that of a conversation."""
Part: TypeAlias = dict[str, NDArray[np.object_]]
"""The columns of a file."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Columns of strings [n], and y, int64 [n]: labels where the run names some, else the number of
    a row's language or file, by which a set is split and divided."""

    y: Tensor
    columns: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    units: NDArray[np.int64] | None = None
    """Whose each row is (node/data/units.py), [n]; None: nobody has said."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """The texts of these row numbers [n], in their order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        units = None if self.units is None else self.units[rows]
        return Texts(self.y[torch.from_numpy(rows)], columns, units)

    def split(self) -> tuple[Texts, Texts]:
        """(train, test): a fifth of every kind in test."""
        test = test_rows(self.y.numpy())
        return self.take(np.setdiff1d(np.arange(len(self)), test)), self.take(test)

    def split_by(self, columns: Sequence[str]) -> tuple[Texts, Texts]:
        """(train, test): rows that are alike in these columns are on one side; a fifth of the
        different ones of every kind is in test, which their digests decide."""
        cells = zip(*(self.columns[name] for name in columns), strict=True)
        questions = [digest("\n".join(map(str, row))) for row in cells]
        kinds: dict[int, set[str]] = {}
        for kind, question in zip(self.y.tolist(), questions, strict=True):
            kinds.setdefault(kind, set()).add(question)
        tested = {it for each in kinds.values() for it in sorted(each)[: len(each) // 5]}
        held_out = np.array([question in tested for question in questions])
        return self.take(np.flatnonzero(~held_out)), self.take(np.flatnonzero(held_out))

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
        sha = hashlib.sha256(self.y.numpy().tobytes())
        for name in sorted(self.columns):
            sha.update(json.dumps([name, *map(str, self.columns[name])]).encode())
        return sha.hexdigest()


def digest(text: str) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def public(task: TaskSection) -> tuple[Texts, Texts]:
    """(train, test) of the run's public file.

    Raises:
        ConfigurationError, DataError: as `read`.
    """
    assert task.text is not None
    if task.path is None:
        raise ConfigurationError(
            'task.data = "file" needs task.path: a public file or folder to divide.'
        )
    texts = read(task.path, task)
    if task.text.test:
        return texts, read(task.text.test, task)
    asked = _asked(task.text, texts) if task.name == "reasoning" else []
    train, test = texts.split_by(asked) if asked else texts.split()
    if not (len(train) and len(test)):
        raise DataError(
            f"{task.path} has so few rows that a fifth of a kind is none to test on; name "
            "task.text.test."
        )
    return train, test


def read(path: Path, task: TaskSection) -> Texts:
    """The rows of a file, or of all files of a folder, which then have a column `file`, unless it
    is theirs.

    Raises:
        ConfigurationError: pyarrow is missing.
        DataError: it is missing, damaged, empty, of no known kind, a column that the run names is
            not there, or a row has nothing to learn.
    """
    assert task.text is not None
    files, others = _files(path)
    if others:
        unused.tell(path, others, f"texts end in {', '.join(READERS)}")
    if not files:
        raise DataError(
            f"{path} holds no text: files that end in {', '.join(READERS)} are expected."
        )
    parts = [_with_messages(_file(file, task), task.text.answer) for file in files]
    if missing := [name for name in _named(task) if any(name not in part for part in parts)]:
        known = ", ".join(sorted(set.intersection(*map(set, parts)))) or "none"
        raise DataError(f"{path} has no column {missing[0]!r}; it has {known} (see task.text).")
    for file, part in zip(files, parts, strict=True):
        _make_text(file, part, task.text)
    sizes = [len(next(iter(part.values()))) for part in parts]
    if not sum(sizes):
        raise DataError(f"{path} has no rows: there is nothing to learn from or to test on.")
    shared = set.intersection(*map(set, parts))
    if any(before_answer(task.text.answer) in {*part} - shared for part in parts):
        raise DataError(
            f"{path}: the column {task.text.answer!r} holds conversations in some files only; "
            "divide them."
        )
    merged = {name: np.concatenate([part[name] for part in parts]) for name in sorted(shared)}
    kinds = np.repeat(np.arange(len(files)), sizes)
    if path.is_dir() and "file" not in merged:
        merged["file"] = np.repeat(np.array([file.name for file in files], dtype=object), sizes)
    if task.labels:
        kinds, bad = labels(list(merged[task.text.answer]), task)
        usable(path, len(kinds), bad, 0)
        merged[task.text.answer] = strings(
            [task.labels[k] for k in kinds]
        )  # what it is tested on: yes, not " Yes" or 1.0
    return Texts(torch.from_numpy(kinds), merged)


def rows(path: Path, task: TaskSection) -> Iterator[Mapping[str, object]]:
    """Row by row the columns of each file, as they are there: no conversation is divided, no
    paragraph cut.

    Raises:
        ConfigurationError, DataError: as `read`.
    """
    assert task.text is not None
    for file in _files(path)[0]:
        if ending(file) in PLAIN:
            yield from ({"text": piece} for piece in pieces(read_text(file), sys.maxsize))
            continue
        part = _file(file, task)
        for cells in zip(*part.values(), strict=True):
            yield dict(zip(part, cells, strict=True))


def _with_messages(part: Part, answer: str) -> Part:
    """The columns of a file, in which `messages`, as chat data sets call their conversations,
    stands for a `text` that is not there.
    """
    if answer != TEXT or TEXT in part or MESSAGES not in part:
        return part
    others = {name: column for name, column in part.items() if name != MESSAGES}
    return {**others, TEXT: part[MESSAGES]}


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Those that are read, and those not used."""
    if not path.is_dir():
        return [path], []
    inside = sorted(file for file in path.iterdir() if not unused.is_clutter(file.name))
    files = [
        file
        for file in inside
        if ending(file) in READERS and file.is_file() and not unused.is_about(file)
    ]
    if not files and columns.is_dataset(path):
        return [path], []
    return files, [file for file in inside if file not in files]


def _named(task: TaskSection) -> list[str]:
    """Columns that the run names."""
    assert task.text is not None
    return [*task.text.prompt, task.text.answer]


def _asked(text: TextSection, texts: Texts) -> list[str]:
    """Columns that a question is made of."""
    spoken = [before_answer(text.answer)] if before_answer(text.answer) in texts.columns else []
    named = [*text.prompt, *fields(text.template)]
    return spoken or [name for name in named if name in texts.columns]


def before_answer(answer: str) -> str:
    """The column of what was said before the answer, where that is a conversation's last turn."""
    return f"{answer}: before"


def _make_text(file: Path, part: Part, text: TextSection) -> None:
    """Divides conversations, and refuses what can't be shown.

    Raises:
        DataError: a cell of a column that the run names is no text, or there is nothing to learn.
    """
    shown = [
        name
        for name in dict.fromkeys([*text.prompt, text.answer, *fields(text.template)])
        if name in part
    ]
    for name in shown:
        part[name] = strings([*map(conversations.parsed, part[name])])
        for wrong, what in REFUSED:
            _refuse(file, name, part[name], wrong, what)
    _divide_conversations(file, part, text.answer)
    for name in shown:
        what = "holds a list or an object; take what is needed as text"
        _refuse(file, name, part[name], _is_nested, what)
    empty = np.flatnonzero([not cell.strip() for cell in part[text.answer]])
    if len(empty):
        raise DataError(
            f"{file}, row {empty[0] + 1}, has nothing in the column {text.answer!r}; leave it out."
        )


REFUSED: Sequence[tuple[Callable[[str], bool], str]] = (
    (lambda cell: not columns.is_unicode(cell), "is no Unicode text; repair it"),
    (conversations.is_python, "holds a list as Python prints it; save it as JSON"),
    (
        conversations.is_broken,
        "has a turn whose content is no text, or that calls tools; leave it out",
    ),
)
"""What is wrong with a cell that is shown -> the sentence's end."""


def _refuse(
    file: Path, name: str, cells: Iterable[str], wrong: Callable[[str], bool], what: str
) -> None:
    if row := next((row for row, cell in enumerate(cells, 1) if wrong(cell)), None):
        raise DataError(f"{file}, row {row}: the column {name!r} {what}.")


def _is_nested(cell: str) -> bool:
    """A list or an object, and no conversation."""
    return isinstance(cell, Nested) and not conversations.turns(cell)


def _divide_conversations(file: Path, part: Part, answer: str) -> None:
    """Puts a conversation's last turn of the assistant in its place, and what was said before in a
    column of its own.

    Raises:
        DataError: a row is something else.
    """
    if not any(conversations.turns(cell) for cell in part[answer]):
        return
    before, last = [], []
    for row, cell in enumerate(part[answer], 1):
        if (divided := conversations.divided(cell)) is None:
            raise DataError(
                f"{file}, row {row}: the column {answer!r} is no conversation with a turn of the "
                "assistant; a list of "
                '{"role": …, "content": …} is expected, one of them with the role assistant.'
            )
        before.append(divided[0])
        last.append(divided[1])
    part[before_answer(answer)], part[answer] = strings(before), strings(last)


def _file(file: Path, task: TaskSection) -> Part:
    reader = _table if file.is_dir() else READERS.get(ending(file))
    if reader is None:
        raise DataError(
            f"{file} is of no known kind; a folder or a file in {', '.join(READERS)} is expected."
        )
    try:
        return reader(file, task)
    except FileNotFoundError:
        raise DataError(
            f"There is no data file {file}; check task.path in run.toml, or data.path in node.toml."
        ) from None
    except NotUtf8 as error:
        raise DataError(f"{file} {error}.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is cut or damaged"
        raise DataError(f"{file} can't be read ({reason}).") from None


def _table(file: Path, task: TaskSection) -> Part:
    return {name: strings(values) for name, values in columns.read(file, _named(task)).items()}


def _objects(file: Path, task: TaskSection) -> Part:
    """A list of objects, or one on each line; a key that an object lacks is empty there."""
    text = read_text(file)
    rows = _listed(file, text) if text.lstrip().startswith("[") else _lines(file, text)
    if not rows:
        raise DataError(f"{file} has no rows: there is nothing to learn from or to test on.")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: strings([row.get(name) for row in rows]) for name in names}


def _listed(file: Path, text: str) -> list[dict[str, object]]:
    try:
        rows: list[object] = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(
            f"{file} is no JSON; a list of objects, or one object on each line, is expected."
        ) from None
    return [_object(f"{file}, item {number}", row) for number, row in enumerate(rows, 1)]


def _lines(file: Path, text: str) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            raise DataError(
                f"{file}, line {number}, is no JSON; an object on each line is expected."
            ) from None
        if _object(f"{file}, line {number}", row):
            rows.append(row)
    return rows


def _object(place: str, row: object) -> dict[str, object]:
    """The row, if it is a JSON object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: an object with the names of columns as keys is expected.")
    return row


def _plain(file: Path, task: TaskSection) -> Part:
    assert task.text is not None
    return {"text": strings(pieces(read_text(file), task.text.piece))}


READERS: Mapping[str, Callable[[Path, TaskSection], Part]] = {
    **dict.fromkeys((*columns.PARQUET, *columns.CSV), _table),
    **dict.fromkeys(OBJECTS, _objects),
    **dict.fromkeys(PLAIN, _plain),
}
"""How a file ends -> its columns. A new kind of text: one function, one line here."""


def pieces(text: str, longest: int) -> list[str]:
    """The paragraphs of a text, those that are too long cut where words end."""
    rows: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if len(whole := paragraph.strip()) <= longest:
            rows += [whole] if whole else []
        else:
            rows += textwrap.wrap(whole, longest)
    return rows


def strings(values: Sequence[object]) -> NDArray[np.object_]:
    """Values as an array of Python strings [n] (see `columns.text`)."""
    array = np.empty(len(values), dtype=object)
    array[:] = [value if isinstance(value, str) else columns.text(value) for value in values]
    return array
