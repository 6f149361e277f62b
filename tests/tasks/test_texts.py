"""Rows of text: how files are read, split, chosen for tests and divided."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from node import data
from node.config import ExperimentSection, TaskSection
from node.data import fortunes, partition, read_texts
from node.data.texts import Texts, pieces, strings
from peer.errors import ConfigurationError, DataError


def section(path: Path | None = None, **text: object) -> TaskSection:
    return TaskSection.model_validate(
        {"name": "causal-lm", "data": "file", "path": path, "text": text}
    )


def moods(labels: tuple[str, str], column: str = "text") -> TaskSection:
    return TaskSection.model_validate(
        {"labels": labels, "classes": 2, "text": {"answer": "mood", "prompt": [column]}}
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_table_of_texts_has_its_columns_and_labels(kind: str, tmp_path: Path) -> None:
    rows = [
        {"headline": "up, up", "mood": "good", "year": 2001},
        {"headline": "dołu", "mood": "bad", "year": 2002},
    ]
    path = tmp_path / f"news.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pyarrow = pytest.importorskip(
            "pyarrow", reason="pip install 'peerpoise[tables]' brings pyarrow"
        )
        from pyarrow import csv, parquet

        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, path) if kind == "parquet" else csv.write_csv(table, path)
    task = moods(("bad", "good"), "headline")
    found = read_texts(path, task)
    assert found.y.tolist() == [1, 0]
    assert found.columns["headline"].tolist() == ["up, up", "dołu"]
    assert [str(year) for year in found.columns["year"]] == ["2001", "2002"]


def test_a_plain_file_is_cut_into_paragraphs_and_where_words_end() -> None:
    text = "One.\n\nTwo two\ntwo.\n\n\n" + "word " * 30
    found = pieces(text, 40)
    assert found[:2] == ["One.", "Two two\ntwo."]
    assert all(len(piece) <= 40 for piece in found)
    assert " ".join(found[2:]).split() == ["word"] * 30


def test_files_of_a_folder_are_kinds_that_can_be_dealt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("a.txt", 10), ("b.md", 5), ("c.txt", 5)):
        (tmp_path / name).write_text("\n\n".join(f"{name} {k}" for k in range(count)))
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    train, test = data.public_sets(section(tmp_path))
    said = capsys.readouterr().err
    assert said.startswith(
        f"warning: {tmp_path} has files that are not used (1 .pdf); texts end in .parquet, .csv"
    )
    assert said.count("\n") == 1
    assert test.columns["file"].tolist() == ["a.txt", "a.txt", "b.md", "c.txt"]
    parts = partition.divide(ExperimentSection(nodes=3, partition="column", column="file"), train)
    assert sorted(set(train.columns["file"][rows]).pop() for rows in parts) == [
        "a.txt",
        "b.md",
        "c.txt",
    ]
    assert train.digest() != test.digest()


def test_one_language_per_peer_and_all_of_them_in_the_test_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "games" / "fortunes"
    monkeypatch.setenv("PEERPOISE_SYSTEM_DATA", str(tmp_path))
    for place in ("own", "debian"):
        if place == "debian":
            for language, patterns in fortunes.PLACES.items():
                for name in (it.replace("*", "some") for it in patterns):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    some = [
                        f"{language} {name} number {k} of a hundred\n\t-- me" for k in range(100)
                    ]
                    (folder / name).write_text("\n%\n".join([*some, "short"]))
                    (folder / f"{name}.dat").write_bytes(b"\x00\x01")
        train, test = fortunes.read_fortunes()
        assert (
            {*train.columns["language"]}
            == {*test.columns["language"]}
            == {"de", "en", "es", "it", "pl"}
        )
        assert len(train) == 4 * len(test)
        parts = partition.divide(
            ExperimentSection(nodes=5, partition="column", column="language"), train
        )
        assert all(len({*train.columns["language"][rows]}) == 1 for rows in parts)
        assert sum(map(len, parts)) == len(train)
        assert ("number" in train.columns["text"][0]) == (place == "debian")


@pytest.mark.parametrize("language", fortunes.PLACES)
def test_our_own_texts_are_many_and_all_different(language: str) -> None:
    texts = (fortunes.BUNDLED / f"{language}.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(texts)) == len(texts) >= 160
    assert all(40 <= len(text) <= 200 and text == text.strip() for text in texts)


def test_dirichlet_divides_by_language_or_by_the_column_that_is_named() -> None:
    n = 400
    languages = strings([["de", "en"][k % 2] for k in range(n)])
    texts = Texts(torch.tensor([k // 200 for k in range(n)]), {"language": languages})
    by_label, by_language = (
        partition.divide(ExperimentSection(nodes=2, alpha=0.01, seed=3, column=it), texts)
        for it in ("", "language")
    )
    for parts, kinds in ((by_label, texts.y.numpy()), (by_language, languages)):
        assert all(
            max(np.unique(kinds[rows], return_counts=True)[1]) > 0.9 * len(rows) for rows in parts
        )


def test_a_smaller_test_set_is_balanced_and_always_the_same() -> None:
    kinds = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    texts = Texts(kinds, {"text": strings(range(73))})
    assert texts.balanced(9).y.bincount().tolist() == [3, 3, 3]
    assert texts.balanced(12).y.bincount().tolist() == [5, 3, 4]
    assert texts.balanced(9).columns["text"].tolist() == texts.balanced(9).columns["text"].tolist()
    assert len(texts.balanced(None)) == len(texts.balanced(99)) == 73


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2, is no JSON"),
        ("a.jsonl", '{"text": "x"}\n{"other": "y"}', "row 2, has nothing in the column 'text'"),
        ("a.jsonl", "[1]", "item 1: an object"),
        ("a.jsonl", "1", "line 1: an object"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.txt", "  \n\n ", "has no rows"),
        ("a.jsonl", '{"words": "x"}', "has no column 'text'; it has words"),
        ("a.doc", "x", "of no known kind"),
        ("a.parquet", "x", "can't be read as a table"),
    ],
)
def test_a_bad_file_is_one_sentence(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read_texts(tmp_path / name, section())


def test_a_file_may_begin_with_a_mark_and_only_line_feeds_end_its_lines(tmp_path: Path) -> None:
    rows = ["one\u2028two", "three\x85four", "five\u2029six"]
    lines = "\r\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8-sig", newline="")
    (tmp_path / "a.txt").write_text("One.", encoding="utf-8-sig")
    assert read_texts(tmp_path / "a.jsonl", section()).columns["text"].tolist() == rows
    assert read_texts(tmp_path / "a.txt", section()).columns["text"].tolist() == ["One."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_paragraphs_and_lines_may_end_in_any_way(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes("one\nline\n\ntwo\n \t\nthree\n".replace("\n", end).encode())
    assert read_texts(tmp_path / "a.txt", section()).columns["text"].tolist() == [
        "one\nline",
        "two",
        "three",
    ]
    (tmp_path / "a.jsonl").write_bytes('{"text": "x"}\n{"text": "y"}\n'.replace("\n", end).encode())
    assert read_texts(tmp_path / "a.jsonl", section()).columns["text"].tolist() == ["x", "y"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_gzip_is_known_by_its_content_and_workbooks_are_named(tmp_path: Path, name: str) -> None:
    content = {"a.csv": b"text\nx\n", "a.jsonl": b'{"text": "x"}', "a.txt": b"x"}[name]
    (tmp_path / name).write_bytes(gzip.compress(content))
    (tmp_path / f"{name}.gz").write_bytes(content)
    for file in (name, f"{name}.gz"):
        assert read_texts(tmp_path / file, section()).columns["text"].tolist() == ["x"]
    for binary, says in {
        b"PK\3\4\x14\0\6": "is a workbook or an archive",
        b"\0" * 99: "is no text, but zeros",
    }.items():
        (tmp_path / name).write_bytes(binary)
        with pytest.raises(DataError, match=says):
            read_texts(tmp_path / name, section())


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_an_empty_cell_is_no_word_and_no_answer(kind: str, tmp_path: Path) -> None:
    def written(name: str, *rows: tuple[int | None, float | None, str | None]) -> Path:
        path, table = (
            tmp_path / f"{name}.{kind}",
            [dict(zip(["age", "rate", "text"], row, strict=True)) for row in rows],
        )
        if kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, table)))
        else:
            pyarrow = pytest.importorskip(
                "pyarrow", reason="pip install 'peerpoise[tables]' brings pyarrow"
            )
            from pyarrow import csv, parquet

            found = pyarrow.Table.from_pylist(table)
            parquet.write_table(found, path) if kind == "parquet" else csv.write_csv(found, path)
        return path

    found = read_texts(written("a", (1, None, "x"), (None, 0.5, "y")), section()).columns
    assert (found["age"].tolist(), found["rate"].tolist()) == (["1", ""], ["", "0.5"])
    with pytest.raises(
        DataError, match=f"b.{kind}, row 2, has nothing in the column 'text'; leave it out"
    ):
        read_texts(written("b", (1, 1, "x"), (2, 1, None)), section())


@pytest.mark.parametrize(
    "text",
    [{"prompt": ["mood"]}, {"template": "{headline} is {mood}:"}, {"template": "{a b}{mood}"}],
)
def test_the_answer_is_not_shown_before(text: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="the column 'mood' is the answer"):
        section(answer="mood", **text)


def test_other_bad_data_is_one_sentence_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data file"):
        read_texts(tmp_path / "nothing.txt", section())
    with pytest.raises(DataError, match="holds no text"):
        read_texts(tmp_path, section())
    (tmp_path / "latin.txt").write_bytes("è".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_texts(tmp_path / "latin.txt", section())
    with pytest.raises(ConfigurationError, match=r"needs task\.path"):
        data.public_sets(section())
    (tmp_path / "a.jsonl").write_text('{"text": "grey"}')
    task = TaskSection(labels=("bad", "good"), classes=2, text={})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"'grey' is none of task\.labels"):
        read_texts(tmp_path / "a.jsonl", task)


def test_a_column_of_text_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "zip,sure,when,text\n00042,true,2024-05-02,1.50\n10115,False,NA,1e3\n"
    )
    found = read_texts(tmp_path / "a.csv", section()).columns
    assert {name: column.tolist() for name, column in found.items()} == {
        "zip": ["00042", "10115"], "sure": ["true", "False"], "when": ["2024-05-02", "NA"], "text": ["1.50", "1e3"],
    }  # fmt: skip
    (tmp_path / "a.jsonl").write_text('{"text": true}\n{"text": false}\n{"text": 7}')
    assert read_texts(tmp_path / "a.jsonl", section()).columns["text"].tolist() == [
        "true",
        "false",
        "7",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "ndjson", "JSON"])
def test_keys_are_optional_and_a_list_is_read_too(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "a", "note": "x"}, {"text": "b"}, {"more": 1, "text": "c"}]
    path = tmp_path / f"a.{kind}"
    for content in ("\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows, indent=1)):
        path.write_text(content)
        found = read_texts(path, section()).columns
        assert (found["text"].tolist(), found["note"].tolist()) == (["a", "b", "c"], ["x", "", ""])
        assert found["more"].tolist() == ["", "", "1"]


def test_reports_of_several_lines_of_any_number(tmp_path: Path) -> None:
    report = 'First line of {}.\nSecond, with a comma.\n\nThird ""quoted"".' + " more words" * 15
    rows = "".join(f'"{report.format(k)}",{("good", "bad")[k % 2]}\n' for k in range(12_000))
    (tmp_path / "a.csv").write_text("text,mood\n" + rows)
    task = moods(("bad", "good"))
    found = read_texts(tmp_path / "a.csv", task)
    assert (len(found), int(found.y.sum())) == (12_000, 6_000)
    assert found.columns["text"][7].splitlines()[3].startswith('Third "quoted". more')


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "is UTF-16 text; save it as UTF-8"), ("latin-1", "not UTF-8")]
)
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str, says: str) -> None:
    content = {
        "a.csv": "text\nsüß\n",
        "a.jsonl": '{"text": "süß"}',
        "a.json": '[{"text": "süß"}]',
    }.get(name, "süß")
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=says) as caught:
        read_texts(tmp_path / name, section())
    assert "save" in str(caught.value)
    (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert read_texts(tmp_path / name, section()).columns["text"].tolist() == ["süß"]


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "x"}]
    for cell in (turns, json.dumps(turns)):
        (tmp_path / "b.json").write_text(json.dumps([{"text": cell}]))
        with pytest.raises(DataError, match="row 1: the column 'text' is no Unicode text"):
            read_texts(tmp_path / "b.json", section())
    (tmp_path / "a.jsonl").write_text('{"text": "x \\ud83d\\ude00"}\n{"text": "x \\ud83d"}')
    with pytest.raises(DataError, match="row 2: the column 'text' is no Unicode text; repair it"):
        read_texts(tmp_path / "a.jsonl", section())


def test_conversations_are_in_all_files_of_a_folder_or_in_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": [{"role": "assistant", "content": "x"}]}')
    (tmp_path / "b.jsonl").write_text('{"text": "y"}')
    with pytest.raises(DataError, match="the column 'text' holds conversations in some files only"):
        read_texts(tmp_path, section())


def test_a_column_named_file_is_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"file,text\nscan {name},x\n")
    assert read_texts(tmp_path, section(prompt=["file"])).columns["file"].tolist() == [
        "scan a",
        "scan b",
    ]
    (tmp_path / "c.txt").write_text("plain")
    with pytest.raises(DataError, match="no column 'file'; it has text"):
        read_texts(tmp_path, section(prompt=["file"]))


@pytest.mark.parametrize("folder", [".", "data"])
def test_what_is_about_a_data_set_is_not_learned(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    (tmp_path / folder).mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / folder / "train.parquet")
    for name in ("README.md", "LICENSE.txt"):
        (tmp_path / name).write_text("not data")
    assert read_texts(tmp_path, section()).columns["text"].tolist() == ["x"]
    assert "1 .md, 1 .txt" in capsys.readouterr().err


def test_the_label_is_learned_not_how_a_row_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,mood\nx, TRUE \ny,false\nz,False\n")
    task = moods(("false", "true"))
    found = read_texts(tmp_path / "a.csv", task)
    assert found.columns["mood"].tolist() == ["true", "false", "false"]


def test_texts_may_be_gzipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}'))
    (tmp_path / "._a.jsonl").write_bytes(b"\0\5\26\7")
    assert read_texts(tmp_path, section()).columns["text"].tolist() == ["x"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}' * 99)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz can't be read"):
        read_texts(tmp_path, section())


def test_a_folder_of_partitioned_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b", "c"], "year": [2001, 2002, 2002]})
    parquet.write_to_dataset(table, tmp_path, partition_cols=["year"])
    found = read_texts(tmp_path, section()).columns
    assert sorted(zip(found["text"], found["year"], strict=True)) == [
        ("a", "2001"),
        ("b", "2002"),
        ("c", "2002"),
    ]


def test_chat_data_are_read_as_they_come(tmp_path: Path) -> None:
    """Their column is called messages; a column text goes before it."""
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join([json.dumps({"messages": turns})] * 3), encoding="utf-8")
    read = read_texts(file, section(file))
    assert list(read.columns["text"]) == ["4"] * 3
    assert "2 + 2?" in read.columns["text: before"][0]
    file.write_text(json.dumps({"messages": turns, "text": "plain"}) + "\n", encoding="utf-8")
    read = read_texts(file, section(file))
    assert list(read.columns["text"]) == ["plain"]
