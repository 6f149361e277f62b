"""What `peerpoise ledger show | verify | export` say of ledgers, whole and damaged ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.command import Call
from node.privacy.accountant import Mechanism, epsilon_pld, epsilon_rdp
from node.privacy.known_rows import KnownRows
from node.privacy.ledger import Ledger

STRICT = Mechanism(sigma=2.0, rate=0.1, releases=3)
SHARED = Mechanism(sigma=3.0, rate=0.1, releases=3, batches="shared")
DELTA = 1e-5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's ledgers: one of two runs, of three rounds and of two, each with two answers."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "peerpoise" / "ledger"
    with Ledger.open(folder, "ward") as ledger:
        for run, mechanism, rounds in (("first", STRICT, 3), ("second", SHARED, 2)):
            for t in range(rounds):
                for recipient in ("a", "b"):
                    ledger.debit(run, t, recipient, mechanism)
        known = KnownRows(folder, make_key=True)
        known.add("ward", known.digests([b"a row", b"another"]))
    return folder


def table(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(text.splitlines()))


def test_show(peerpoise: Call, folder: Path) -> None:
    shown = peerpoise("ledger", "show")
    assert (shown.code, shown.err) == (0, "")
    head, titles, *entries = shown.out.splitlines()
    assert head.startswith(f"ward, in {folder}: 10 entries, head ")
    assert len(entries) == 10
    assert (titles.split()[:3], entries[-1].split()[2]) == (["entry", "time", "run"], "second")
    [document] = json.loads(peerpoise("ledger", "show", "ward", "--last", "2", "--json").out)
    assert [it["entry"] for it in document["last"]] == [9, 10]
    assert (document["entries"], document["first_name"]) == (10, "ward")
    with Ledger.look(folder, "ward") as ledger:
        assert document["head"] == ledger.head[1].hex()


def set_back(folder: Path) -> None:
    """The database is that of before the last debit, the head is not."""
    shutil.copy(folder / "ward.sqlite", folder / "yesterday")
    with Ledger.open(folder, "ward") as ledger:
        ledger.debit("second", 2, "a", SHARED)
    (folder / "yesterday").rename(folder / "ward.sqlite")


def edited(folder: Path) -> None:
    database = sqlite3.connect(folder / "ward.sqlite")
    database.execute("UPDATE debit SET sigma = 1e9 WHERE seq = 4")
    database.commit()
    database.close()


def no_text(folder: Path) -> None:
    """As a flipped bit may leave it."""
    database = sqlite3.connect(folder / "ward.sqlite")
    database.execute("UPDATE debit SET time = CAST(x'32ff0a30' AS TEXT) WHERE seq = 4")
    database.commit()
    database.close()


def cut(folder: Path) -> None:
    os.truncate(folder / "ward.sqlite", 5000)


FAULTS: dict[str, Callable[[Path], object]] = {
    "changed at row 4": edited,
    "can't decode byte 0xff": no_text,
    "older than the head": set_back,
    "malformed|is damaged|can't be read": cut,
    "no readable head": lambda folder: (folder / "ward.head").unlink(),
    "is gone": lambda folder: (folder / "ward.sqlite").unlink(),
    "by which data are known again, is damaged": lambda folder: (folder / "ward.rows").write_bytes(
        b"?"
    ),
}


def test_verify(peerpoise: Call, folder: Path) -> None:
    with Ledger.open(folder, "other") as writer:  # of a daemon that runs
        writer.debit("run", 0, "a", STRICT)
        verified = peerpoise("ledger", "verify")
        assert (verified.code, verified.err) == (0, "")
        other, ward = verified.out.splitlines()
        assert ward.startswith("ward is whole: 10 entries, chained without a gap up to its head ")
        assert other.startswith("other is whole: 1 entries")
        listed = json.loads(peerpoise("ledger", "verify", "--json").out)
    assert [(it["ledger"], it["whole"], it["entries"]) for it in listed] == [
        ("other", True, 1),
        ("ward", True, 10),
    ]


@pytest.mark.parametrize("what", FAULTS)
def test_verify_says_what_is_wrong(peerpoise: Call, folder: Path, what: str) -> None:
    FAULTS[what](folder)
    refused = peerpoise("ledger", "verify", "ward")
    assert (refused.code, refused.out, refused.err.count("\n")) == (73, "", 1)
    assert any(each in refused.err for each in what.split("|")), refused.err
    assert "it is tried again by itself" not in refused.err
    document = peerpoise("ledger", "verify", "ward", "--json")
    [verdict] = json.loads(document.out)
    assert (document.code, verdict["whole"]) == (73, False)
    assert verdict["sentence"] == refused.err.strip()
    if "known again" not in what:
        assert peerpoise("ledger", "export", "ward").code == 73


def test_export(peerpoise: Call, folder: Path) -> None:
    with Ledger.open(folder, "ward") as ledger:
        ledger.mark("third", "none")
    exported = peerpoise("ledger", "export", "ward")
    assert (exported.code, exported.err) == (0, "")
    lines = table(exported.out)
    assert [line["entry"] for line in lines] == [str(k) for k in range(1, 12)]
    assert [line["round"] for line in lines] == [*"001122", *"0011", ""]
    assert {line["kind"] for line in lines[:-1]} == {"debit"}
    assert (lines[-1]["kind"], lines[-1]["mode"]) == ("mark", "none")
    assert (lines[0]["recipient"], lines[0]["sigma"], lines[6]["batches"]) == ("a", "2.0", "shared")
    document = json.loads(peerpoise("ledger", "export", "--json").out)
    assert [{k: "" if v is None else str(v) for k, v in it.items()} for it in document] == lines


def test_epsilon_round_by_round(peerpoise: Call, folder: Path) -> None:
    words = ("ledger", "export", "ward", "--epsilon", "--delta", str(DELTA))
    lines = table(peerpoise(*words).out)
    assert [(line["run"], line["round"]) for line in lines] == [
        *(("first", str(t)) for t in range(3)),
        *(("second", str(t)) for t in range(2)),
    ]
    assert {line["debits"] for line in lines} == {"2"}
    lifetime = [float(line["epsilon_lifetime"]) for line in lines]
    assert lifetime == sorted(set(lifetime))
    last = lines[-1]
    with Ledger.open(folder, "ward") as ledger:
        everything, second = ledger.rows(), ledger.rows("second")
        assert lifetime[-1] == epsilon_rdp(everything, DELTA) > epsilon_pld(everything, DELTA)
        assert float(last["epsilon_run"]) == epsilon_rdp(second, DELTA)
        assert last["epsilon_mechanism"] == last["epsilon_run"], "nothing else was made so"
        assert (
            float(lines[2]["epsilon_run"])
            == lifetime[2]
            == epsilon_rdp(ledger.rows("first"), DELTA)
        )
        ledger.count_lost("first", STRICT, 50)
        ledger.mark("third", "none")
    *before, lost, mark = table(peerpoise(*words).out)
    assert before == lines
    assert (lost["kind"], lost["round"], lost["debits"]) == ("lost", "", "50")
    assert float(lost["epsilon_run"]) > 2 * float(lines[2]["epsilon_run"])
    assert (mark["epsilon_lifetime"], mark["epsilon_run"]) == ("inf", "inf")
    assert json.loads(peerpoise(*words, "--json").out)[-1]["epsilon_lifetime"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "wrad"), "There is no ledger wrad in "),
        (("verify", "wrad"), "There is no ledger wrad in "),
        (("export",), "Name one of the ledgers in "),
        (("export", "ward", "--delta", "2"), "is no δ"),
        (("show", "../ward"), "data.name"),
    ],
)
def test_mistakes(peerpoise: Call, folder: Path, words: tuple[str, ...], sentence: str) -> None:
    Ledger.open(folder, "other").close()
    refused = peerpoise("ledger", *words)
    assert (refused.code, refused.err.count("\n"), refused.out) == (78, 1, "")
    assert sentence in refused.err
