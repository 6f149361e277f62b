"""Tables in the ways that offices and programs write them. No sentence shows a cell of a row."""

from __future__ import annotations

import gzip
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node import data
from node.config import ExperimentSection, TaskSection
from node.config.features import NumberFeature
from node.data import columns, partition
from peer.errors import DataError


def number(center: float, scale: float) -> NumberFeature:
    return NumberFeature(center=center, scale=scale)


TASK = TaskSection(classes=2, features={"age": number(50, 20), "dose": number(5, 3)})
ROWS = [(50, 5.0, 0), (70, 6.5, 1), (30, 0.5, 1)]
VALUES = [[0.0, 0.0], [1.0, 0.5], [-1.0, -1.5]]
PLAIN = "age,dose,label\n50,5.0,0\n70,6.5,1\n30,0.5,1\n"


def read(path: Path, task: TaskSection = TASK) -> tuple[list[list[float]], list[int]]:
    found = data.own(path, task)
    return found.x.view(len(found), -1).tolist(), found.y.tolist()


def written(folder: Path, content: str, name: str = "mine.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content.encode(encoding))
    return path


def with_columns(head: str, cells: str) -> str:
    """PLAIN with more columns behind."""
    first, *others = PLAIN.splitlines()
    return "\n".join([first + head, *(line + cells for line in others)]) + "\n"


SHAPES = {
    "plain": PLAIN,
    "mark": "\ufeff" + PLAIN,
    "carriage returns and line feeds": PLAIN.replace("\n", "\r\n"),
    "carriage returns": PLAIN.replace("\n", "\r"),
    "no line feed at the end": PLAIN.rstrip(),
    "blank lines": PLAIN.replace("\n", "\n\n"),
    "semicolons": PLAIN.replace(",", ";"),
    "semicolons and quotation marks": '"age";"dose";"label"\n"50";"5.0";"0"\n"70";"6.5";"1"\n"30";"0.5";"1"\n',
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "spaces": PLAIN.replace(",", ", "),
    "spaces before, too": PLAIN.replace(",", " , "),
    "spaces and quotation marks": 'age, "dose", label\n50, "5.0", 0\n70, "6.5", 1\n30, "0.5", 1\n',
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "decimal commas in quotation marks": 'age,dose,label\n50,"5,0",0\n70,"6,5",1\n30,"0,5",1\n',
    "comments above": "# exported 2024-05-02 by clinic A; ward 3\n#\n" + PLAIN,
    "a header as numpy writes it": "# " + PLAIN,
    "Excel's line": "sep=;\n" + PLAIN.replace(",", ";"),
    "Excel's line in capitals and quotation marks": '"SEP=;"\n' + PLAIN.replace(",", ";"),
    "blank lines above": "\n \n# exported\n\n" + PLAIN,
    "characters that can't be seen": "\u200e" + PLAIN.replace("dose", "dose\u200b"),
    "lines of spaces": PLAIN.replace("\n", "\n  \n"),
    "rows of separators, as Excel leaves them": PLAIN + ",,\n,,\n",
    "labels with two decimals": PLAIN.replace(",0\n", ",0.00\n").replace(",1\n", ",1.00\n"),
    "an index": "".join(
        f"{k},{line}\n" if k else f",{line}\n" for k, line in enumerate(PLAIN.splitlines())
    ),
    "another column twice": with_columns(",note,note", ",a,b"),
    "blank heads": with_columns(",,", ",,"),
    "empty cells beyond the header": "\n".join(
        line + ",," * (k > 0) for k, line in enumerate(PLAIN.splitlines())
    ),
    "line breaks in another column": with_columns(
        ",note", ',"seen on Monday\nand on Friday, ""late"""'
    ),
    "a column that is long": with_columns(",note", "," + "x" * 200_000),
    "a column of mixed kinds": with_columns(",note", ",").replace("70,6.5,1,", "70,6.5,1,unknown"),
    "labels as floats": PLAIN.replace(",0\n", ",0.0\n").replace(",1\n", ",1.0\n"),
    "signs and powers": PLAIN.replace("5.0", "+5e0").replace("0.5", ".5"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_is_read_as_offices_write_it(tmp_path: Path, shape: str) -> None:
    assert read(written(tmp_path, SHAPES[shape])) == (VALUES, [0, 1, 1])


@pytest.mark.parametrize("name", ["mine.CSV", "mine.tsv", "mine.txt", "mine.TSV"])
def test_a_separator_is_known_by_the_header_whatever_the_name(tmp_path: Path, name: str) -> None:
    for separator in ",;\t|":
        assert read(written(tmp_path, PLAIN.replace(",", separator), name)) == (VALUES, [0, 1, 1])


@pytest.mark.parametrize("name", ["mine.csv.gz", "mine.CSV.GZ", "mine.tsv.gz"])
def test_a_table_may_be_gzipped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(PLAIN.encode()))
    assert read(tmp_path / name) == (VALUES, [0, 1, 1])
    (tmp_path / name).write_bytes(gzip.compress(PLAIN.encode() * 999)[:-20])
    with pytest.raises(DataError, match="it is cut or damaged"):
        read(tmp_path / name)


def test_an_npz_in_capitals(tmp_path: Path) -> None:
    with (tmp_path / "MINE.NPZ").open("wb") as file:
        np.savez(file, x=np.zeros((3, 4, 4)), y=np.arange(3))
    assert len(data.own(tmp_path / "MINE.NPZ", TaskSection(classes=3))) == 3


def test_columns_that_nobody_names_may_be_in_any_encoding(tmp_path: Path) -> None:
    other = with_columns(",Größe", ",süß")
    assert read(written(tmp_path, other, encoding="latin-1")) == (VALUES, [0, 1, 1])
    mine = TASK.model_copy(update={"label": "Größe", "labels": ("süß", "x")})
    assert read(written(tmp_path, other), mine) == (VALUES, [0, 0, 0])
    with pytest.raises(DataError, match=r"is not UTF-8 text \(see its header\); save it as UTF-8"):
        read(written(tmp_path, other, encoding="latin-1"), mine)
    path, mine = (
        written(tmp_path, with_columns(",size", ",süß"), encoding="latin-1"),
        TASK.model_copy(update={"label": "size"}),
    )
    with pytest.raises(
        DataError, match=r"row 1: the column 'size' is not UTF-8 text; save the file as UTF-8"
    ):
        read(path, mine)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=r"is UTF-16 text; save it as UTF-8"):
        read(written(tmp_path, PLAIN, encoding=encoding))


SECRET = "79.25"
"""What no sentence may show, nor the rest of its row."""

WRONG = {
    "no header": (PLAIN.split("\n", 1)[1], "first line looks like data"),
    "no header, words": ("anna,berlin,yes\nbert,bonn,yes\n", "first line looks like data"),
    "no header, dates": (
        f"2024-05-02,anna,yes\n2024-05-03,{SECRET},no\n",
        "first line looks like data",
    ),
    "no header, decimal commas": (
        f"{SECRET.replace('.', ',')};8,9;1\n",
        "first line looks like data",
    ),
    "a list of JSON": ('[{"age": 79.25}]', "first line looks like data"),
    "a column is missing": (
        PLAIN.replace("dose", "mg"),
        "no column 'dose'; it has age, mg, label (separated by comma)",
    ),
    "other separators": (
        PLAIN.replace(",", ":"),
        "no column 'age', 'dose', 'label'; it has age:dose:label; see",
    ),
    "a column twice": (with_columns(",age", f",{SECRET}"), "has the column 'age' twice"),
    "a row too short": (PLAIN + f"{SECRET},1.5\n", "row 4 has 2 cells, the header 3"),
    "a row too long": (PLAIN + f"{SECRET},1.5,1,7\n", "row 4 has 4 cells, the header 3"),
    "decimal commas between commas": (
        PLAIN + f"{SECRET},1,5,1\n",
        "row 4 has 4 cells, the header 3",
    ),
    "a quotation mark": (PLAIN + f'"{SECRET},1.5,1\n30,1,0\n', "a quotation mark is not closed"),
    "a quotation mark in mid-cell": (
        PLAIN + f'"{SECRET}"5,1.5,1\n30,1,0\n',
        "a quotation mark is not closed",
    ),
    "an empty cell": (
        PLAIN + f"{SECRET},,1\n",
        "column 'dose' has empty or infinite values (see row 4)",
    ),
    "NA": (PLAIN + f"{SECRET},NA,1\n", "column 'dose' has empty or infinite values (see row 4)"),
    "infinite": (
        PLAIN + f"{SECRET},inf,1\n",
        "column 'dose' has empty or infinite values (see row 4)",
    ),
    "a word": (
        PLAIN + f"{SECRET},unknown,1\n",
        "column 'dose' is not numeric in row 4: write a plain number",
    ),
    "a date": (
        PLAIN + f"{SECRET},2024-05-02,1\n",
        "column 'dose' is not numeric in row 4: write a plain number",
    ),
    "hexadecimal": (
        PLAIN + f"{SECRET},0x1f,1\n",
        "column 'dose' is not numeric in row 4: write a plain number",
    ),
    "Python's own": (
        PLAIN + f"{SECRET},1_0,1\n",
        "column 'dose' is not numeric in row 4: write a plain number",
    ),
    "percent": (
        PLAIN + f"{SECRET},12%,1\n",
        "column 'dose' is not numeric in row 4: write percentages",
    ),
    "thousands": (
        PLAIN + f'{SECRET},"1,234.5",1\n',
        "column 'dose' is not numeric in row 4: it separates thousands",
    ),
    "thousands elsewhere": (
        PLAIN + f'{SECRET},"1.234,5",1\n',
        "column 'dose' is not numeric in row 4: it separates thousands",
    ),
    "thousands or decimals": (
        f"age;dose;label\n50;1,234;1\n{SECRET};5,678;0\n",
        "in row 1: all commas of the column may",
    ),
    "beyond float32": (
        PLAIN + f"{SECRET},1e300,1\n",
        "column 'dose' has empty or infinite values (see row 4)",
    ),
    "no header, sentences": (
        "anna has a cold today,she is unknown\nbert of berlin is well,\n",
        "has no header with the",
    ),
    "Python's own labels": (PLAIN + f"{SECRET},1.5,0_1\n", "labels are not integers"),
    "no label": (PLAIN + f"{SECRET},1.5,\n", "row 4, has no label"),
    "blank label": (PLAIN + f"{SECRET},1.5,  \n", "row 4, has no label"),
    "a total": (PLAIN + f"Total,{SECRET},90\n", "column 'age' is not numeric in row 4"),
    "nothing": ("", "can't be read as a table: it is empty"),
    "blank lines only": ("\n\n", "can't be read as a table: it is empty"),
    "a header only": ("age,dose,label\n", "has no rows"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_can_not_be_read_is_a_sentence_without_a_cell(tmp_path: Path, kind: str) -> None:
    content, says = WRONG[kind]
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, content))
    sentence = str(caught.value).removeprefix(str(tmp_path))
    assert says in sentence
    assert "\n" not in sentence
    for cell in (
        SECRET,
        SECRET.replace(".", ","),
        "anna",
        "berlin",
        "unknown",
        "1.5",
        "234",
        "newlines_in_values",
    ):
        assert cell not in sentence


PLAIN_NUMBER, THOUSANDS = (
    "write a plain number, or encode",
    "it separates thousands; write a plain number",
)
COMMAS = ["55,83", "30,89", "41", "7,125"]
POINTS = [cell.replace(",", ".") for cell in COMMAS]
ODD = {
    "a limit": (COMMAS, ">11,20", PLAIN_NUMBER),
    "a unit": (COMMAS, "50,1 mg", PLAIN_NUMBER),
    "a date": (COMMAS, "02.05.2024", PLAIN_NUMBER),
    "two commas": (COMMAS, "11,20,3", PLAIN_NUMBER),
    "thousands": (COMMAS, "1.234,5", THOUSANDS),
    "millions": (COMMAS, "1.234.567", THOUSANDS),
    "thousands by a space": (COMMAS, "1\u202f234,5", THOUSANDS),
    "thousands by an apostrophe": (COMMAS, "1'234,5", THOUSANDS),
    "a point": (
        COMMAS,
        "86.41",
        "it has a decimal point, other rows decimal commas; write all in one way",
    ),
    "a point that may be two things": (
        COMMAS,
        "1.234",
        "its point may separate thousands or decimals",
    ),
    "a percentage": (COMMAS, "11,20 %", "write percentages as plain numbers"),
    "a comma": (
        POINTS,
        "86,41",
        "it has a decimal comma, other rows decimal points; write all in one way",
    ),
    "a comma that may be two things": (
        POINTS,
        "1,234",
        "its comma may separate thousands or decimals",
    ),
    "thousands by a comma": (POINTS, "1,234.5", THOUSANDS),
    "millions among thousands": (["1,234,567", "2,345,678"], "x", THOUSANDS),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_the_row_that_does_not_fit_is_named(tmp_path: Path, kind: str, separator: str) -> None:
    others, odd, says = ODD[kind]
    lines = [
        separator.join(f'"{it}"' for it in (k, cell, k % 2))
        for k, cell in enumerate([*others, odd, *others])
    ]
    path = written(tmp_path, "\n".join([separator.join(("age", "dose", "label")), *lines]))
    row = 1 if kind == "millions among thousands" else len(others) + 1
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"column 'dose' is not numeric in row {row}: {says}" in str(caught.value)
    assert odd not in str(caught.value).removeprefix(str(path)) or odd == "x"


def test_commas_that_may_all_separate_thousands_are_told_as_such(tmp_path: Path) -> None:
    says = "row 2: all commas of the column may separate thousands or decimals; write numbers with a point"
    with pytest.raises(DataError, match=says):
        read(written(tmp_path, "age;dose;label\n1;7;0\n50;1,234;1\n70;5,678;0\n60;50,1 mg;1\n"))
    assert read(written(tmp_path, "age;dose;label\n50;1,234;1\n70;0,678;0\n"))[1] == [1, 0]


LABELS = {
    "true and false": (("false", "true"), ("false", "true")),
    "True and False": (("false", "true"), ("False", "True")),
    "TRUE and False in the run file": (("False", "TRUE"), ("false", "true")),
    "codes": (("01", "02"), ("01", "02")),
    "zip codes": (("00042", "42"), ("00042", "42")),
    "floats": (("0.0", "1.0"), ("0.0", "1.0")),
    "floats for integers": (("0", "1"), ("0.0", "1.0")),
    "dates": (("2024-01-01", "2024-02-01"), ("2024-01-01", "2024-02-01")),
    "NA": (("EU", "NA"), ("EU", "NA")),
    "null": (("null", "set"), ("null", "set")),
    "powers": (("1000.5", "1e3"), ("1000.5", "1e3")),
    "spaces": (("no", "yes"), ("no ", " yes")),
    "two decimals": (("0", "1"), ("0.00", "1.0")),
    "letters of two parts": (("m\u00fcde", "x"), ("mu\u0308de", "x")),
    "letters of one": (("mu\u0308de", "x"), ("m\u00fcde", "x")),
    "commas": (("no, never", "yes"), ('"no, never"', "yes")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_text(tmp_path: Path, kind: str) -> None:
    names, (zero, one) = LABELS[kind]
    content = PLAIN.replace(",0\n", f",{zero}\n").replace(",1\n", f",{one}\n")
    assert read(written(tmp_path, content), TASK.model_copy(update={"labels": names}))[1] == [
        0,
        1,
        1,
    ]


def test_a_text_that_is_no_label_is_not_shown(tmp_path: Path) -> None:
    content = PLAIN.replace(",0\n", f",{SECRET} was the dose that anna was given on Monday\n")
    with pytest.raises(DataError, match=r"row 1: a long text is none of task\.labels \(no, yes\)"):
        read(written(tmp_path, content), TASK.model_copy(update={"labels": ("no", "yes")}))


def test_a_column_is_found_however_its_name_is_composed(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN.replace("dose", "mu\u0308de"))
    mine = TASK.model_copy(update={"features": {"age": number(50, 20), "m\u00fcde": number(5, 3)}})
    assert read(path, mine) == (VALUES, [0, 1, 1])


PARQUET: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "decimals": ({"dose": [Decimal("5.0"), Decimal("6.5"), Decimal("0.5")]}, ()),
    "numbers as text": ({"dose": ["5.0", "6.5", "0.5"]}, ()),
    "Booleans": ({"label": [False, True, True]}, ("False", "true")),
    "dates": (
        {"label": [date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 2)]},
        ("2024-01-01", "2024-01-02"),
    ),
    "floats": ({"label": [0.0, 1.0, 1.0]}, ("0", "1")),
    "labels as decimals": (
        {"label": [Decimal("0.00"), Decimal("1.00"), Decimal("1.00")]},
        ("0", "1"),
    ),
    "another column of lists": ({"note": [[1], [], None]}, ()),
    "nanoseconds": (
        {"label": np.array([1, 2, 2], "M8[ns]")},
        tuple(f"1970-01-01 00:00:00.00000000{k}" for k in "12"),
    ),
}


@pytest.mark.parametrize("kind", PARQUET)
@pytest.mark.parametrize("categories", [False, True])
def test_parquet_of_any_types(tmp_path: Path, kind: str, categories: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    changed, names = PARQUET[kind]
    age, dose, label = zip(*ROWS, strict=True)
    table = pyarrow.table({"age": list(age), "dose": list(dose), "label": list(label), **changed})
    if categories and kind not in (
        "another column of lists",
        "decimals",
        "labels as decimals",
        "nanoseconds",
    ):
        table = pyarrow.table(
            {name: table.column(name).dictionary_encode() for name in table.column_names}
        )
    parquet.write_table(table, tmp_path / "mine.PARQUET")
    task = TASK.model_copy(update={"labels": names, "data": "file"})
    assert read(tmp_path / "mine.PARQUET", task) == (VALUES, [0, 1, 1])


@pytest.mark.parametrize("partitioned", [[], ["age"], ["label", "age"]])
def test_a_folder_of_parquet_is_one_table(tmp_path: Path, partitioned: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    age, dose, label = zip(*ROWS, strict=True)
    table = pyarrow.table({"age": list(age), "dose": list(dose), "label": list(label)})
    parquet.write_to_dataset(table, tmp_path / "mine.parquet", partition_cols=partitioned)
    (tmp_path / "mine.parquet" / "_SUCCESS").touch()
    values, labels = read(tmp_path / "mine.parquet")
    assert sorted(zip(values, labels, strict=True)) == sorted(zip(VALUES, [0, 1, 1], strict=True))


def test_a_folder_of_parquet_may_have_other_files_and_codes_in_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    for code, rows in (("01", ROWS[:1]), ("02", ROWS[1:])):
        (tmp_path / f"label={code}").mkdir()
        age, dose, _ = zip(*rows, strict=True)
        parquet.write_table(
            pyarrow.table({"age": age, "dose": dose}), tmp_path / f"label={code}" / "a.parquet"
        )
    for name in ("README.md", "_SUCCESS", "._a.parquet", "label=01/.a.parquet.crc"):
        (tmp_path / name).write_text(SECRET)
    assert read(tmp_path, TASK.model_copy(update={"labels": ("01", "02")})) == (VALUES, [0, 1, 1])
    assert "files that are not used (1 .md)" in capsys.readouterr().err


def test_a_folder_of_other_tables_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    written(tmp_path, PLAIN)
    with pytest.raises(
        DataError, match="has no Parquet files; a table of another kind is one file, no folder"
    ):
        read(tmp_path)


def test_columns_of_parquet_that_python_can_not_hold(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    age, dose, label = zip(*ROWS, strict=True)
    numbers = pyarrow.array([3_000_000] * 3, pyarrow.int32())
    text = pyarrow.array([b"\xff", b"a", b"b"])
    others = {
        "far": numbers.cast(pyarrow.date32()),
        "mars": numbers.cast(pyarrow.int64()).cast(pyarrow.timestamp("us", tz="Mars/X")),
        "latin": pyarrow.Array.from_buffers(pyarrow.string(), 3, text.buffers()),
    }
    parquet.write_table(
        pyarrow.table({"age": age, "dose": dose, "label": label, **others}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet", TASK.model_copy(update={"data": "file"})) == (
        VALUES,
        [0, 1, 1],
    )
    for name in others:
        with pytest.raises(
            DataError, match=f"the column '{name}' has text or times that can't be read"
        ):
            read(tmp_path / "a.parquet", TASK.model_copy(update={"label": name}))


def test_damaged_parquet_is_a_sentence_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    path = written(tmp_path, "PAR1" + SECRET, "mine.parquet")
    with pytest.raises(DataError, match="can't be read as a table: it is no Parquet, or damaged"):
        read(path)


def test_other_columns_of_parquet_may_have_one_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    columns = [pyarrow.array(list(column)) for column in zip(*ROWS, strict=True)]
    names = ["age", "dose", "label"]
    parquet.write_table(
        pyarrow.Table.from_arrays([*columns, *columns[:2]], [*names, "x", "x"]),
        tmp_path / "a.parquet",
    )
    assert read(tmp_path / "a.parquet") == (VALUES, [0, 1, 1])
    parquet.write_table(
        pyarrow.Table.from_arrays([*columns, columns[0]], [*names, "age"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="has the column 'age' twice; leave one"):
        read(tmp_path / "a.parquet")


def test_own_rows_are_kept_in_the_named_columns_only_public_ones_in_all(tmp_path: Path) -> None:
    path = written(tmp_path, with_columns(",ward,note,note", ",10,a,b"))
    own, public = (
        data.own(path, TASK.model_copy(update={"data": kind})) for kind in ("own", "file")
    )
    assert set(own.columns) == {"label"}
    assert set(public.columns) == {"label", "ward"}
    assert public.columns["ward"].tolist() == [10] * 3, "integers stay in their order"
    assert (
        partition.kinds(ExperimentSection(column="ward", partition="column"), public).tolist()
        == [0] * 3
    )


def test_a_value_as_text() -> None:
    found = [columns.text(it) for it in (None, float("nan"), True, 1.5, Decimal("0.10"), b"a", "x")]
    assert found == ["", "", "true", "1.5", "0.10", "a", "x"]
    for nested in ({"a": 1}, ["x"]):
        assert isinstance(columns.text(nested), columns.Nested)
    assert columns.is_unicode("süß 😀")
    assert not columns.is_unicode(columns.text(b"\xff"))
