"""Columns of tables: CSV with any usual separator, gzipped or not, and Parquet.

Cells of CSV are text, whatever they look like; callers convert the columns that hold numbers. No
cell is ever quoted in a sentence: rows are named by their number, the first below the header is 1.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from node.data import unused
from node.encoding import NotUtf8, composed, opened, refuse_others
from node.packing import Bomb, refuse_bomb
from peer.errors import ConfigurationError, DataError

SEPARATORS: Mapping[str, str] = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CSV, PARQUET = (".csv", ".tsv"), (".parquet",)
INVISIBLE = "\u200b\u200e\u200f\u2060\ufeff"
"""Characters without a width, which get copied along with names."""
LOOKED_AT = 100
"""Rows that are compared with a header to see whether it is one."""

DATA = re.compile(r"[+-]?[.,]?\d|[\[{<]")
"""How a number, a date or what is no table begins."""
ABOVE = re.compile(r'\s*(#|"?sep=|$)', re.IGNORECASE)
"""How lines begin that may stand above a header."""
LONGEST, WORDS = 40, 4
"""Most characters and words of a column's name; a longer one may be a cell of a table without a
header."""
Columns = dict[str, list[object]]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Stands in every column for a row that has another number of cells than the header."""

    cells: int
    header: int


class Nested(str):
    """A list or an object, as JSON: it is no text, so that no prompt shows it."""


def is_dataset(folder: Path) -> bool:
    """Is it a table in several files of Parquet, as Spark and pandas write them?"""
    return bool(_parts(folder)[0])


def ending(path: Path) -> str:
    """How a file's name ends, in small letters, without .gz."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read(
    path: Path, named: Collection[str], *, others: bool = True, ragged: bool = False
) -> Columns:
    """The columns of these names; with `others` all those whose name is unique and not empty.

    `ragged`: rows that have too few or too many cells are there as `Ragged`.

    Raises:
        ConfigurationError: pyarrow is missing, which Parquet needs.
        DataError: the file is missing, damaged, in another encoding, or lacks a column.
    """
    try:
        if ending(path) in PARQUET or path.is_dir():
            return _parquet(path, named, others)
        return _csv(path, named, others, ragged)
    except FileNotFoundError:
        raise DataError(
            f"There is no data file {path}; check task.path in run.toml, or data.path in node.toml."
        ) from None
    except NotUtf8 as error:
        raise DataError(f"{path} {error}.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is cut or damaged"
        raise DataError(f"{path} can't be read as a table: {reason}.") from None


def rows(path: Path, named: Collection[str]) -> Iterator[Mapping[str, object]]:
    """Row by row what `read` gives of all columns, whatever a row holds; of CSV never more than one
    is in memory.

    Raises:
        ConfigurationError, DataError: see `read`.
    """
    if ending(path) in PARQUET or path.is_dir():
        columns = read(path, named)
        for cells in zip(*columns.values(), strict=True):
            yield dict(zip(columns, cells, strict=True))
        return
    separator, above, head = _header(path, named)
    kept = [(k, name) for k, name in enumerate(head) if name and head.count(name) == 1]
    for row in islice(_rows(path, separator, above), 1, None):
        yield {name: row[k] for k, name in kept if k < len(row)}


def text(value: object) -> str:
    """A cell as text: empty where there is nothing, true and false as JSON writes them."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, (dict, list)):
        return Nested(json.dumps(value, ensure_ascii=False, default=str))
    return str(value)


def is_unicode(cell: str) -> bool:
    """Neither bytes that were no UTF-8, nor half of a surrogate pair, as JSON can write it."""
    return cell.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in cell)


# -- CSV


def _csv(path: Path, named: Collection[str], others: bool, ragged: bool) -> Columns:
    separator, above, head = _header(path, named)
    once = {name for name, n in Counter(head).items() if n == 1 and name}
    wanted = once if others else named
    kept = [k for k, name in enumerate(head) if name in wanted]
    cells: list[list[object]] = [[] for _ in kept]
    for number, row in enumerate(islice(_rows(path, separator, above), 1, None), 1):
        odd = len(row) < len(head) or any(row[len(head) :])
        if odd and not ragged:
            raise DataError(
                f"{path} can't be read as a table: row {number} has {len(row)} cells, the header "
                f"{len(head)}."
            )
        for column, k in zip(cells, kept, strict=True):
            column.append(Ragged(len(row), len(head)) if odd else row[k])
    by_name = {head[k]: column for k, column in zip(kept, cells, strict=True)}
    for name in named:
        _refuse_other_encodings(path, name, by_name[name])
    return by_name


def _header(path: Path, named: Collection[str]) -> tuple[str, int, list[str]]:
    """Separator, number of lines above the header (comments, Excel's sep=), and names of the
    columns.

    Raises:
        DataError: no separator gives the columns that are named, each once.
    """
    with closing(_opened(path)) as file:
        lines = list(islice(file, LOOKED_AT))
    above = 0
    while True:
        heads = {separator: _names(path, separator, above) for separator in SEPARATORS}
        for separator, head in heads.items():
            head[:1] = [name if name in named else name.lstrip("# ") for name in head[:1]]
            head[:] = [name if name in named else composed(name) for name in head]
            if set(named) <= set(head):
                if twice := [name for name in named if head.count(name) > 1]:
                    raise DataError(f"{path} has the column {twice[0]!r} twice; leave one.")
                return separator, above, head
        if above < len(lines) and ABOVE.match(lines[above]):
            above += 1
            continue
        separator, head = max(heads.items(), key=lambda item: len(item[1]))
        raise DataError(_missing(path, named, separator, head, above))


def _missing(
    path: Path, named: Collection[str], separator: str, head: Sequence[str], above: int
) -> str:
    """What is wrong with a header; one that looks like data is not shown."""
    if not head:
        return f"{path} can't be read as a table: it is empty."
    if not is_unicode("".join(head)):
        return f"{path} is not UTF-8 text (see its header); save it as UTF-8."
    if any(map(DATA.match, head)) or _repeats(head, _rows(path, separator, above, strict=False)):
        return (
            f"{path} has no header: its first line looks like data; write the names of the columns "
            "above it."
        )
    is_long = any(len(name) > LONGEST or len(name.split()) > WORDS for name in head)
    if is_long and not {*named} & {*head}:
        return (
            f"{path} has no header with the columns {', '.join(map(repr, named))}; write their "
            f"names above the rows, separated by {', '.join(SEPARATORS.values())}."
        )
    wanted = ", ".join(repr(name) for name in named if name not in head)
    names = ", ".join(filter(None, head))
    between = f" (separated by {SEPARATORS[separator]})" if len(head) > 1 else ""
    return f"{path} has no column {wanted}; it has {names}{between}; see [task] in the run file."


def _repeats(head: Sequence[str], rows: Iterator[list[str]]) -> bool:
    """Has a row below the header the header's cell in the same column?"""
    for row in islice(rows, 1, LOOKED_AT):
        if any(name and name == cell.strip() for name, cell in zip(head, row, strict=False)):
            return True
    return False


def _names(path: Path, separator: str, above: int) -> list[str]:
    head = next(_rows(path, separator, above, strict=False), [])
    return [name.strip().strip(INVISIBLE) for name in head]


def _rows(path: Path, separator: str, above: int, *, strict: bool = True) -> Iterator[list[str]]:
    """The header and all rows in which there is something.

    Raises:
        DataError: a quotation mark is out of place.
    """
    csv.field_size_limit(sys.maxsize)
    with closing(_opened(path)) as file:
        for _ in range(above):
            next(file)
        rows = csv.reader(file, delimiter=separator, strict=strict, skipinitialspace=True)
        try:
            yield from (row for row in rows if any(row))
        except csv.Error:
            raise DataError(
                f"{path} can't be read as a table: in line {above + rows.line_num} or before a "
                "quotation mark is not closed, or not doubled."
            ) from None


def _opened(path: Path) -> TextIO:
    """As text. Bytes that are no UTF-8 stay: they may be in columns that nobody asks for."""
    with opened(path) as file:
        refuse_others(file.read(4))
    return TextIOWrapper(opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _refuse_other_encodings(path: Path, name: str, cells: Sequence[object]) -> None:
    for row, cell in enumerate(cells, 1):
        if not is_unicode(str(cell)):
            raise DataError(
                f"{path}, row {row}: the column {name!r} is not UTF-8 text; save the file as UTF-8."
            )


# -- Parquet


def _parquet(path: Path, named: Collection[str], others: bool) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigurationError(
            "Parquet needs pyarrow: pip install 'peerpoise[tables]'."
        ) from None
    try:
        if not path.is_dir():
            _refuse_bomb(path)
        table = _folder(path) if path.is_dir() else parquet.ParquetFile(path).read()
    except (FileNotFoundError, DataError, Bomb):
        raise
    except (pyarrow.ArrowException, ValueError, OSError):
        what = "it is no Parquet, or damaged"
        if path.is_dir():
            what = "a file in it is no Parquet, is damaged, or has other types"
        raise DataError(f"{path} can't be read as a table: {what}.") from None
    count = Counter(table.column_names)
    once = [name for name, n in count.items() if n == 1]
    if twice := [name for name in named if count[name] > 1]:
        raise DataError(f"{path} has the column {twice[0]!r} twice; leave one.")
    if missing := [name for name in named if name not in once]:
        names = ", ".join(table.column_names)
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {names}; see [task] in "
            "the run file."
        )
    by_name: Columns = {}
    for name in once if others else named:
        column = table.column(name)
        try:
            if pyarrow.types.is_timestamp(column.type):  # Python's own times have no nanoseconds
                column = column.cast("string")
            by_name[name] = column.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            if name in named:
                raise DataError(
                    f"{path}: the column {name!r} has text or times that can't be read."
                ) from None
    return by_name


def _refuse_bomb(path: Path) -> None:
    """Raises Bomb: by its own metadata the file unpacks to too much; a cell counts as a byte at
    least.
    """
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    declared = sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    refuse_bomb(path.stat().st_size, max(declared, metadata.num_rows * metadata.num_columns))


def _folder(folder: Path) -> Any:
    """The table in all files of a folder; values in the names of its folders are text."""
    import pyarrow
    from pyarrow import dataset

    files, others = _parts(folder)
    if not files:
        raise DataError(
            f"{folder} has no Parquet files; a table of another kind is one file, no folder."
        )
    unused.tell(folder, others, "the table is its files of Parquet")
    for file in files:
        _refuse_bomb(file)
    parts = [part for file in files for part in file.relative_to(folder).parts[:-1] if "=" in part]
    names = dict.fromkeys(part.partition("=")[0] for part in parts)
    partitioning = dataset.HivePartitioning(
        pyarrow.schema([(name, pyarrow.string()) for name in names])
    )
    paths = [str(file) for file in files]
    return dataset.dataset(
        paths, format="parquet", partitioning=partitioning, partition_base_dir=str(folder)
    ).to_table()


def _parts(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of Parquet in a folder, and those not used; without what systems and Spark
    (_SUCCESS) leave there.
    """

    def passed_over(name: str) -> bool:
        return unused.is_clutter(name) or (name.startswith("_") and "=" not in name)

    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    inside = [path for path in inside if not any(map(passed_over, path.relative_to(folder).parts))]
    files = [path for path in inside if path.suffix.lower() in PARQUET]
    return files, [path for path in inside if path.suffix.lower() not in PARQUET]
