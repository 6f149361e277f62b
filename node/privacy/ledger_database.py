"""The database of a ledger: its rows, how they are chained, and connections to it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from node.privacy.accountant import Mechanism
from peer import files

SCHEMA = 1
"""PRAGMA user_version of the database; a newer one is refused, never guessed at."""

MARK = -1
"""The round of a row that says only in which mode a run used the data."""

COUNTED = MARK - 1
"""The round of the first row that stands for one that was lost; the next are below it."""

PER = " per "
"""Between mode and unit of a row: "strict per patient_id"."""

_TABLE = """
CREATE TABLE debit (
    seq INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL,
    recipient TEXT NOT NULL, mode TEXT NOT NULL, sigma REAL NOT NULL, rate REAL NOT NULL,
    batches TEXT NOT NULL, releases INTEGER NOT NULL, time TEXT NOT NULL,
    previous BLOB NOT NULL, digest BLOB NOT NULL, UNIQUE (run, round, recipient))
"""
_COLUMNS = (
    "seq, run, round, recipient, mode, sigma, rate, batches, releases, time, previous, digest"
)
INSERT = f"INSERT INTO debit ({_COLUMNS}) VALUES ({', '.join('?' * 12)})"
SELECT = f"SELECT {_COLUMNS} FROM debit ORDER BY seq"

_NEWER = "it is of version {}, written by a newer peerpoise"

Kind: TypeAlias = Literal["debit", "mark", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row, but for its place in the chain."""

    sequence: int
    time: str
    """ISO 8601."""
    run: str
    round: int
    """Of a debit; MARK; or COUNTED and below."""
    recipient: str
    """Empty: of no release."""
    mechanism: Mechanism

    @classmethod
    def of(cls, sequence: int, values: Sequence[Any]) -> Entry:
        """`values`: the columns from run to time."""
        run, round, recipient, mode_and_unit, sigma, rate, batches, releases, time = values
        mode, _, unit = mode_and_unit.partition(PER)
        mechanism = Mechanism(
            sigma=sigma, rate=rate, batches=batches, releases=releases, mode=mode, unit=unit
        )
        return cls(
            sequence=sequence,
            time=time,
            run=run,
            round=round,
            recipient=recipient,
            mechanism=mechanism,
        )

    @property
    def kind(self) -> Kind:
        """A debit; a run's mark of its mode; or what stands for a debit that was lost."""
        if self.round >= 0:
            return "debit"
        return "mark" if self.round == MARK else "lost"


def written(mechanism: Mechanism) -> str:
    """Mode and unit in one column: who does not know of units takes it for no mode that has an
    ε.
    """
    return f"{mechanism.mode}{PER}{mechanism.unit}" if mechanism.unit else mechanism.mode


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection whose commits are on disk; an interrupted predecessor's rows are brought there
    first.
    """
    if path is not None:
        os.close(files.keep(path, os.O_RDWR))  # SQLite gives its other files the mode of this one
    db = sqlite3.connect(
        path or ":memory:", timeout=1.0, isolation_level=None, check_same_thread=False
    )
    db.text_factory = _text
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise sqlite3.DatabaseError(_NEWER.format(version))
        if not version:
            db.executescript(f"BEGIN; {_TABLE}; PRAGMA user_version = {SCHEMA}; COMMIT")
        if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("it is damaged")
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.DatabaseError("another program has it open")
        if path is not None:
            files.sync(path.parent)
    except BaseException:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection to a database that another process may write to. Where none does, no file is
    made beside it, which would be this user's.
    """
    in_use = path.with_name(f"{path.name}-wal").exists()
    access = "mode=ro" if in_use else "immutable=1"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{access}", uri=True, timeout=1.0)
    db.text_factory = _text
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise sqlite3.DatabaseError(_NEWER.format(version))
        if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("it is damaged")
    except BaseException:
        db.close()
        raise
    if version:
        return db
    db.close()
    return connect(None)  # whoever made the file was interrupted before the table


def _text(raw: bytes) -> str:
    """What is no text is damage, which sqlite3 would take for a disk that may recover.

    Raises:
        UnicodeDecodeError: it is none.
    """
    return raw.decode()


def digest_of(sequence: int, values: Iterable[object], previous: bytes) -> bytes:
    """SHA-256 of a row and its predecessor's digest."""
    return hashlib.sha256(json.dumps([sequence, *values, previous.hex()]).encode()).digest()
