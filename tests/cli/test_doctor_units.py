"""Whom ε protects, as `doctor` and `plan` say it to the owner of the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.command import Call, examine
from node.config import NodeConfig, load
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger

RUN = """\
[task]
data = "own"
{unit}
[task.features]
age = [60, 15]
[privacy]
sigma = 2.0
"""
BY_PERSON = 'unit = "patient_id"'
WHOM = "add/remove all rows of one patient_id"
Pack = Callable[..., Path]


@pytest.fixture
def pack(peerpoise: Call, tmp_path: Path) -> Pack:
    """Packs one host with a table of visits, and returns its file."""

    def packed(unit: str = "", header: str = "patient_id", cells: str = "p%d", n: int = 12) -> Path:
        (tmp_path / "run.toml").write_text(RUN.format(unit=unit))
        rows = [f"{50 + k},{k % 2},{cells % (k // 4) if '%' in cells else cells}" for k in range(n)]
        (tmp_path / "a.csv").write_text("\n".join([f"age,label,{header}", *rows]) + "\n")
        words = ["--host", "a=10.0.0.1:7443", "--host", "b=10.0.0.2:7443"]
        data = [word for name in "ab" for word in ("--data", f"{name}=visits:{tmp_path / 'a.csv'}")]
        made = peerpoise("pack", tmp_path / "run.toml", *words, *data, "--out", tmp_path / "packed")
        assert made.code == 0, made.err
        return tmp_path / "packed" / "a" / "node.toml"

    return packed


def test_it_says_whom_epsilon_protects(peerpoise: Call, pack: Pack) -> None:
    _, found = examine(peerpoise, "--config", pack(BY_PERSON))
    (finding,) = found["privacy unit"]
    assert finding["level"] == "ok"
    assert WHOM in finding["text"]
    assert "at most 8 of its rows" in finding["text"]
    assert "12 examples of 3 different patient_id" in found["data"][0]["text"]


@pytest.mark.parametrize("header", ["patient_id", "Patient ID", "user", "mrn", "subject-no", "id"])
def test_a_column_that_names_persons_is_marked(peerpoise: Call, pack: Pack, header: str) -> None:
    _, found = examine(peerpoise, "--config", pack(header=header))
    (finding,) = found["privacy unit"]
    assert finding["level"] == "warning"
    assert f"the same {header}, but ε protects single rows" in finding["text"]
    assert f'task.unit = "{header}"' in finding["do"]
    assert "p0" not in json.dumps(found)  # nobody's name


@pytest.mark.parametrize(
    ("header", "cells"),
    [("weight", "%d"), ("valid", "%d"), ("patient_id", "p"), ("patient_id", "")],
)
def test_other_columns_are_not(peerpoise: Call, pack: Pack, header: str, cells: str) -> None:
    """No such name, one name for all, or none."""
    _, found = examine(peerpoise, "--config", pack(header=header, cells=cells))
    assert "privacy unit" not in found


def test_a_row_for_each_is_no_doubt(peerpoise: Call, pack: Pack) -> None:
    _, found = examine(peerpoise, "--config", pack(n=1))
    assert "privacy unit" not in found


def test_a_row_of_nobody_is_a_fault(peerpoise: Call, pack: Pack) -> None:
    code, found = examine(peerpoise, "--config", pack(BY_PERSON, cells=""))
    assert code == 1
    assert "'patient_id' (task.unit) is empty" in found["data"][0]["text"]


@pytest.fixture
def used(pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pack:
    """A node whose data were used before, with `before` as the unit."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def packed(before: str, unit: str) -> Path:
        file = pack(unit)
        with Ledger.open(load(NodeConfig, [file]).budget.folder, "visits") as ledger:
            ledger.debit("earlier", 0, "b", Mechanism(sigma=2.0, rate=0.05, unit=before))
        return file

    return packed


@pytest.mark.parametrize(
    ("before", "unit"), [("", BY_PERSON), ("patient_id", ""), ("ward", BY_PERSON)]
)
def test_a_ledger_of_others_is_marked_and_has_no_total(
    peerpoise: Call, used: Pack, before: str, unit: str
) -> None:
    file = used(before, unit)
    _, found = examine(peerpoise, "--config", file)
    assert any("don't protect the same" in it["text"] for it in found["privacy unit"])
    result = peerpoise("plan", file, "--limit", "10", "--json")
    assert result.code == 0, result.err
    lifetime = json.loads(result.out)["lifetime"]
    assert (lifetime["spent"], lifetime["other_unit"], lifetime["rounds_left"]) == (None, True, 0)
    assert "don't add up" in peerpoise("plan", file).out


@pytest.mark.parametrize(("before", "unit"), [("", ""), ("patient_id", BY_PERSON)])
def test_a_ledger_of_the_same_adds_up(peerpoise: Call, used: Pack, before: str, unit: str) -> None:
    file = used(before, unit)
    result = peerpoise("plan", file, "--limit", "10", "--json")
    lifetime = json.loads(result.out)["lifetime"]
    assert 0 < lifetime["spent"] < 10
    assert lifetime["rounds_left"] > 0
    assert not lifetime["other_unit"]
    shown = " ".join(peerpoise("plan", file).out.split())
    assert shown.count(WHOM if unit else "add/remove one example") == 2  # of the run, and of all
