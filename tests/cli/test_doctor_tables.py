"""What `doctor` shows of a host's own table, and the private test sets that `pack` writes down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kit import wards
from kit.command import Call, examine
from node.config import NodeConfig, load

RUN = """\
[task]
data = "own"
label = "died"
labels = ["no", "yes"]
bad_rows = 0.05
[task.features]
age = [60, 15]
creatinine = { kind = "number", center = 90, scale = 30, clip = 5, missing = 90, flag = true }
sex = { kind = "category", values = ["f", "m"] }
ward = { kind = "category", values = ["emergency", "medical", "surgical"], unknown = "slot" }
admitted = { kind = "date", parts = ["month"] }
[privacy]
epsilon = 4.0
"""
HOSTS = ("--host", "a=10.0.0.1:7443", "--host", "b=10.0.0.2:7443")
ROWS = 200
Change = Callable[[str, str], str]
Pack = Callable[..., Path]


@pytest.fixture
def pack(peerpoise: Call, tmp_path: Path) -> Pack:
    """Packs two hosts whose tables were changed, and returns the first one's file."""

    def packed(change: Change = lambda column, cell: cell, more: Sequence[str] = ()) -> Path:
        (tmp_path / "run.toml").write_text(RUN)
        rows = wards.patients(np.random.default_rng(5), ROWS, wards.ANY)
        wards.save(tmp_path / "a.csv", rows, wards.OFFICES["b"], change)
        data = [word for name in "ab" for word in ("--data", f"{name}=w:{tmp_path / 'a.csv'}")]
        words = [*HOSTS, *data, *more, "--out", tmp_path / "packed"]
        assert peerpoise("pack", tmp_path / "run.toml", *words).code == 0
        return tmp_path / "packed" / "a" / "node.toml"

    return packed


def test_each_column_has_its_figures(peerpoise: Call, pack: Pack) -> None:
    _, found = examine(peerpoise, "--config", pack())
    columns = ("age", "creatinine", "sex", "ward", "admitted", "label died", "data")
    assert {found[name][0]["level"] for name in columns} == {"ok"}
    assert "for this host only" in found["columns"][0]["text"]
    texts = {name: found[name][0]["text"] for name in columns}
    assert "0.0% missing; scaled" in texts["age"]
    assert "clipped at ±5" in texts["creatinine"]
    assert "0.0% missing" not in texts["creatinine"]
    assert "0.0% unknown, 0.0% missing" in texts["ward"]
    assert "2024-01-" in texts["admitted"]
    assert texts["label died"].startswith("no ")


def in_other_unit(column: str, cell: str) -> str:
    """Creatinine in mg/dL."""
    return f"{float(cell) / 88.4:.2f}" if column == "creatinine" and cell else cell


def ages_in_months(column: str, cell: str) -> str:
    return f"{float(cell) * 12:.0f}" if column == "age" else cell


def ages_in_days(column: str, cell: str) -> str:
    return f"{float(cell) * 365:.0f}" if column == "age" else cell


def wards_by_number(column: str, cell: str) -> str:
    return f"W{len(cell)}" if column == "ward" else cell


def all_died(column: str, cell: str) -> str:
    return "yes" if column == "died" else cell


def no_creatinine(column: str, cell: str) -> str:
    return "" if column == "creatinine" else cell


@pytest.mark.parametrize(
    ("change", "column", "says", "code"),
    [
        (in_other_unit, "creatinine", "times narrower than its scale says", 0),
        (no_creatinine, "creatinine", "the column has no number", 0),
        (wards_by_number, "ward", "3 categories are not in task.features", 0),
        (all_died, "label died", "all rows have one label", 0),
        (ages_in_days, "age", "times wider than its scale says", 1),
        (ages_in_months, "age", "another unit? Its values are", 1),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_looks_wrong_is_marked(
    peerpoise: Call, pack: Pack, change: Change, column: str, says: str, code: int
) -> None:
    result, found = examine(peerpoise, "--config", pack(change))
    assert (result, found[column][0]["level"]) == (code, "warning")
    assert says in found[column][0]["text"]
    others = {"age", "creatinine", "sex", "ward", "admitted"} - {column}
    assert {found[name][0]["level"] for name in others} == {"ok"}


def test_a_factor_of_88_passes_without_the_mark(peerpoise: Call, pack: Pack) -> None:
    """The power of the check: all else takes the wrong unit for right."""
    code, found = examine(peerpoise, "--config", pack(in_other_unit))
    assert (code, found["data"][0]["level"]) == (0, "ok")


@pytest.mark.parametrize("change", [in_other_unit, lambda column, cell: cell])
def test_run_says_it_too_to_its_own_host(
    peerpoise: Call, pack: Pack, tmp_path: Path, change: Change
) -> None:
    file = pack(change, ("--set", "start.timeout_s=0.2"))
    settings = ("listen.address=127.0.0.1:0", f"budget.ledger_dir={tmp_path / 'ledger'}")
    options = [word for it in settings for word in ("--set", it)]
    ended = peerpoise("run", "--quiet", "--config", file, *options)
    line = (
        "warning: Columns that look as if they were in another unit than run.toml says: creatinine."
    )
    assert (line in ended.err) == (change is in_other_unit)


def test_bad_rows_are_counted(peerpoise: Call, pack: Pack) -> None:
    seen: list[str] = []

    def four(column: str, cell: str) -> str:
        seen.extend([cell] if column == "age" else [])
        return "old" if column == "age" and len(seen) <= 4 else cell

    code, found = examine(peerpoise, "--config", pack(four))
    assert code == 0
    assert [finding["level"] for finding in found["data"]] == ["warning", "ok"]
    assert "4 of 200 rows are skipped (column 'age' is not numeric: 4)" in found["data"][0]["text"]
    assert "196 examples" in found["data"][1]["text"]


def test_a_private_test_set_is_written_down_and_said(
    peerpoise: Call, pack: Pack, tmp_path: Path
) -> None:
    file = pack(more=("--test", f"a:{tmp_path / 'a.csv'}"))
    node = load(NodeConfig, [file])
    assert (node.data.test, node.data.test_public) == (tmp_path / "a.csv", False)
    other = load(NodeConfig, [file.parents[1] / "b" / "node.toml"])
    assert (other.data.test, other.data.test_public) == (None, True)
    assert "outside of ε" in (file.parent / "README.txt").read_text(encoding="utf-8")
    _, found = examine(peerpoise, "--config", file)
    assert "stay on this host" in found["test set"][0]["text"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--test", "c:x.csv"), "--test names c, but there is no --host c"),
        (("--test", "a"), "is not of the form NAME:VALUE"),
        (("--test", "a:x.csv", "--test", "a:y.csv"), "is given twice"),
        (("--test", "a:x.csv", "--set", "task.data=digits"), '--test needs task.data = "own"'),
    ],
)
def test_a_mistake_in_test_is_a_sentence(
    peerpoise: Call, experiment: Path, tmp_path: Path, words: Sequence[str], says: str
) -> None:
    own = () if "task.data=digits" in words else ("--data", "a=w:x", "--data", "b=w:x")
    settings = () if "task.data=digits" in words else ("--set", "task.data=own")
    out = ("--out", tmp_path / "packed")
    result = peerpoise("pack", experiment, *HOSTS, *own, *settings, *words, *out)
    assert result.code == 78
    assert says in result.err
    assert not (tmp_path / "packed").exists()
