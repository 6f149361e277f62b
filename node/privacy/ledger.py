"""The ledger of one data set: what was ever released from it, on disk before the bytes leave.

Files in one folder, per data set:
    NAME.sqlite   rows chained by SHA-256 (WAL, synchronous = FULL: a commit is on disk when it
                  returns)
    NAME.head     (sequence, digest) of the last commit, fsynced apart, in two alternating slots
                  with checksums: SQLite alone silently forgets committed rows when its WAL is cut;
                  a write torn by a crash damages one slot and leaves the other, older by one row,
                  which never left
    NAME.lock     flock, held while open: one process per data set
    NAME.rows     which rows were released from (`known_rows`)
    renames.json  what ledgers were called before (`ledger_names`)

Opening requires a whole chain and ledger ≥ head; neighbors' memory is compared by
`check_remembered`. In doubt nothing is released, until the owner of the data counts the runs whose
debits were lost as wholly spent (`count_lost`). Not covered: somebody who rolls back all files at
once is noticed only by neighbors; one who edits rows and recomputes chain and head is not noticed
at all.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from node.privacy.accountant import Mechanism, Mode, Spent
from node.privacy.ledger_database import (
    COUNTED,
    INSERT,
    MARK,
    SELECT,
    Entry,
    connect,
    connect_to_read,
    digest_of,
    written,
)
from node.privacy.ledger_head import GENESIS, Head, Lock
from node.privacy.ledger_names import LedgerNames
from node.privacy.spending import Spending
from peer import files
from peer.errors import ConfigurationError, LedgerError, StorageError
from peer.failpoint import failpoint

_ADVICE = (
    "Nothing will be released from this data. Restore all of its ledger's files from one copy that "
    "is newer than the last release; without one, count the runs whose debits are lost as wholly "
    "spent: peerpoise ledger count-lost (docs/backup.md)."
)


_RUNS = """
SELECT run, MIN(mode),
    COUNT(DISTINCT CASE WHEN round >= 0 THEN round END), SUM(round != ?), SUM(round <= ?),
    MIN(time), MAX(time) FROM debit GROUP BY run ORDER BY MIN(seq)
"""


@dataclass(frozen=True, slots=True)
class RunOfLedger:
    """One run in a ledger."""

    run: str
    mode: Mode
    """The one that promises least, if there are several (which the alphabet knows)."""
    rounds: int
    """In which something was released, as far as it was debited: mode none is only marked."""
    debits: int
    lost: int
    """Debits among them that stand for lost ones."""
    first: str
    """Time of the first row, ISO 8601."""
    last: str


def wall_clock() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_name(data_name: str) -> None:
    """Raises ConfigurationError: the name of these data can't be that of their ledger's file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", data_name):
        raise ConfigurationError(
            f"data.name {data_name!r} must be 1 to 64 letters, digits, dots, dashes or "
            "underscores, as it names the ledger's file."
        )


class Ledger:
    """The debits of one data set. One process (the lock), one thread at a time. Close it, or use it
    with `with`.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        clock: Callable[[], str] = wall_clock,
        *,
        set_back: bool = False,
        look: bool = False,
    ) -> None:
        self._name = name
        self._look = look
        self._clock = clock
        self._set_back = set_back and folder is not None and self.exists(folder, name)
        self._fault = ""
        self._stale = True
        self._sequence = 0
        self._digest = GENESIS
        self._settled = 0
        """The last row that stands for a lost one; what neighbors remember up to it may differ."""
        self._spending = Spending()
        self._db: sqlite3.Connection | None = None
        self._path = folder / f"{name}.sqlite" if folder else None
        self._head = Head(folder / f"{name}.head") if folder else None
        self._lock = Lock(folder / f"{name}.lock") if folder and not look else None
        try:
            names = LedgerNames.read(folder) if folder else LedgerNames()
            if folder:
                names.check(folder, name)
            self.first_name = names.first.get(name, name)
            """What it was called before any rename; neighbors know it by that."""
            self._recover()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        folder: Path,
        data_name: str,
        clock: Callable[[], str] = wall_clock,
        *,
        set_back: bool = False,
    ) -> Self:
        """Opens or creates the ledger of `data_name` and verifies it. `set_back`: it may be older
        than its head, which stays until `count_lost` has made up for that.

        Raises:
            ConfigurationError: the name can't be a file's name.
            TemporaryFailure: another process has it open.
            LedgerError: it can't vouch for what was spent, or the disk refuses.
        """
        check_name(data_name)
        try:
            files.ensure_dir(folder)
        except StorageError as error:
            raise LedgerError(f"The ledger {data_name} can't be used: {error}") from None
        return cls(folder, data_name, clock, set_back=set_back)

    @classmethod
    def look(cls, folder: Path, data_name: str) -> Self:
        """What was spent, for who only wants to know: nothing is made or written, and a daemon may
        have the ledger open. One that does not exist is empty.

        Raises:
            ConfigurationError: the name can't be a file's name, or it has another one now.
            LedgerError: it can't vouch for what was spent, or the disk refuses.
        """
        check_name(data_name)
        return cls(folder, data_name, look=True)

    @staticmethod
    def exists(folder: Path, data_name: str) -> bool:
        """Is there anything of this ledger? `open` would make it if not."""
        return any(
            os.path.exists(folder / f"{data_name}.{part}") for part in ("sqlite", "head", "rows")
        )

    @staticmethod
    def names(folder: Path) -> list[str]:
        """All ledgers in a folder."""
        paths = [*folder.glob("*.sqlite"), *folder.glob("*.head"), *folder.glob("*.rows")]
        return sorted({path.stem for path in paths})

    @classmethod
    def in_memory(cls) -> Self:
        """A ledger in memory, for experiments on public data within one process: the same rules,
        gone at the end.
        """
        return cls(None, "in memory")

    @property
    def head(self) -> tuple[int, bytes]:
        """(sequence, digest of the last row); (0, zeros) when empty. Neighbors remember it."""
        return self._sequence, self._digest

    @property
    def compositions(self) -> int:
        """Compositions spent so far (see `accountant`), all mechanisms together."""
        return self._spending.compositions

    @property
    def missing(self) -> int:
        """How many debits less it has than its head says; only of a ledger that was set back."""
        return max(0, self._expected_head()[0] - self._sequence)

    def rows(self, run: str | None = None) -> list[Spent]:
        """Everything spent, or one run's, run-length coded for the accountant; a mark counts as one
        composition.
        """
        return self._spending.rows(run)

    def entries(self) -> list[Entry]:
        """All of them, in their order, as they were verified."""
        with self._guarded() as db:
            rows = db.execute(SELECT).fetchall()  # of a daemon that goes on there may be more
        verified = rows[: self._sequence]
        return [Entry.of(sequence, values) for sequence, *values, _, _ in verified]

    def runs(self) -> list[RunOfLedger]:
        """What each run has made of it, in the order in which they began."""
        with self._guarded() as db:
            rows = db.execute(_RUNS, (MARK, COUNTED)).fetchall()
        return [RunOfLedger(*row) for row in rows]

    def longest(self, run: str) -> int:
        """The most debits of this run for one recipient: the longest stream of answers."""
        return self._spending.longest(run)

    def last_round(self, run: str, recipient: str | None = None) -> int:
        """The last round of `run` with a debit (to `recipient`, if given); -1 if there is none."""
        return self._one(
            "SELECT COALESCE(MAX(round), -1) FROM debit "
            "WHERE run = ? AND round >= 0 AND recipient = COALESCE(?, recipient)",
            run,
            recipient,
        )

    def count(self, run: str, round: int) -> int:
        """Debits of this round."""
        return self._one("SELECT COUNT(*) FROM debit WHERE run = ? AND round = ?", run, round)

    def debit(self, run: str, round: int, recipient: str, mechanism: Mechanism) -> int:
        """Writes one debit and returns its sequence number when it is on disk. Only then may the
        bytes leave.

        Raises:
            LedgerError: there is already a debit for (run, round, recipient), or it can't be
                recorded. The row may stand all the same: it is then spent without a release. A
                later debit tries again.
        """
        if round < 0:
            raise ValueError("rounds are counted from 0")
        return self._append(run, round, recipient, mechanism)

    def mark(self, run: str, mode: Mode) -> None:
        """Records, once per run, that `run` uses this data in mode none or paper: every later
        lifetime ε is inf.

        Raises:
            LedgerError: it can't be recorded.
        """
        if not self.count(run, MARK):
            self._append(run, MARK, "", Mechanism(sigma=0.0, rate=1.0, mode=mode))

    def count_lost(self, run: str, mechanism: Mechanism, compositions: int) -> int:
        """Counts all that `run` may release as spent, because some of its debits were lost: so many
        rows that stand for them. Returns how many debits are missing even so; 0: releases go on.

        Raises:
            LedgerError: it can't be recorded; nothing was counted.
        """
        with self._guarded() as db:
            lowest = self._one("SELECT MIN(COALESCE(MIN(round), 0), ?) FROM debit", MARK)
            sequence, previous = self.head
            db.execute("BEGIN IMMEDIATE")
            for k in range(1, compositions + 1):
                values = self._values(run, lowest - k, "", mechanism)
                digest = digest_of(sequence + k, values, previous)
                db.execute(INSERT, (sequence + k, *values, previous, digest))
                previous = digest
            failpoint("before_ledger_count")
            db.execute("COMMIT")
            failpoint("after_ledger_count")
            self._read_all()
            missing = self.missing
            if self._head is not None and not missing:
                self._head.create(*self.head)
                self._head.read()
            return missing

    def check_remembered(self, sequence: int, digest: bytes) -> None:
        """Compares with the highest (sequence, digest) a neighbor was told. A mismatch stops all
        releases of this process, unless it is of a time that was counted as lost.

        Raises:
            LedgerError: the neighbor remembers more than this ledger holds, or another history.
        """
        with self._guarded() as db:
            recorded = self._digest_at(sequence, db)
        if recorded != digest and sequence > self._settled:
            what = "more debits" if recorded is None else "another history"
            self._fault = (
                f"A neighbor remembers {what} of the ledger {self._name} than its files hold. "
                f"{_ADVICE}"
            )
            raise LedgerError(self._fault)

    def close(self) -> None:
        """Gives back files and lock; may be called twice."""
        if self._db is not None:
            self._db.close()
        self._db = None
        self._stale = True
        if self._head is not None:
            self._head.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing -----------------------------------------------------------------------------------

    def _append(self, run: str, round: int, recipient: str, m: Mechanism) -> int:
        with self._guarded() as db:
            failpoint("before_ledger_append")
            values = self._values(run, round, recipient, m)
            digest = digest_of(self._sequence + 1, values, self._digest)
            db.execute("BEGIN IMMEDIATE")
            db.execute(INSERT, (self._sequence + 1, *values, self._digest, digest))
            failpoint("after_ledger_append")
            db.execute("COMMIT")
            failpoint("before_ledger_head")
            if self._head is not None:
                self._head.write(self._sequence + 1, digest)
            failpoint("after_ledger_fsync")
            self._account(run, round, recipient, m, digest)
            return self._sequence

    def _values(
        self, run: str, round: int, recipient: str, m: Mechanism
    ) -> tuple[str | float, ...]:
        """A row but for its place in the chain."""
        how_made = (written(m), float(m.sigma), float(m.rate), m.batches, m.releases)
        return (run, round, recipient, *how_made, self._clock())

    def _account(self, run: str, round: int, recipient: str, m: Mechanism, digest: bytes) -> None:
        """Carries a row that is on disk into memory."""
        self._spending.add(run, round, recipient, m)
        self._sequence += 1
        self._digest = digest

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        """Turns what the disk and SQLite raise into LedgerError, and reads the disk again."""
        if self._fault:
            raise LedgerError(self._fault)
        db = self._connection()
        try:
            yield db
        except sqlite3.IntegrityError:
            self._reread()
            raise LedgerError(
                f"The ledger {self._name} already holds this run's debit of that round."
            ) from None
        except (sqlite3.Error, OSError) as error:
            self._reread()
            raise self._refusal(error) from None

    def _reread(self) -> None:
        """After a failure: what stands on the disk counts. If it can't be read now, the next use
        tries again.
        """
        self._stale = True
        with suppress(LedgerError):
            self._recover()

    # -- reading -----------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        if self._stale:
            if self._lock is not None and not self._lock.held:
                raise LedgerError(f"The ledger {self._name} is closed.")
            self._recover()
        return self._connected

    @property
    def _connected(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def _recover(self) -> None:
        """Connects and reads everything, so that memory holds what the disk holds; brings the head
        up to date.

        Raises:
            LedgerError: chain, head and files disagree, or the disk refuses.
        """
        try:
            head = self._expected_head()
            self._connect()
            self._read_all()
            lost = self._digest_at(head[0], self._connected) != head[1]
            if lost and not self._set_back:
                raise self._integrity_error(
                    "is older than the head that was written beside it, or of another history"
                )
            behind = self._head is not None and head != self.head
            if self._head is not None and behind and not self._set_back and not self._look:
                self._head.write(*self.head)
        except (sqlite3.OperationalError, OSError) as error:
            raise self._refusal(error) from None
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._integrity_error(f"can't be read ({error})") from None
        self._stale = False

    def _expected_head(self) -> tuple[int, bytes]:
        """The head on disk. Files are made in one order, the head first: a missing one is a loss,
        never a crash.
        """
        if self._head is None or self._path is None:
            return 0, GENESIS
        head = self._head.read()
        if self._set_back:
            return head or (0, GENESIS)
        if head is None:
            if self._path.exists() or self._head.path.exists():
                raise self._integrity_error("has no readable head beside it")
            if self._path.with_suffix(".rows").exists():  # which are noted after the head is made
                raise self._integrity_error("is gone, though the rows that it knows are there")
            if self._look:
                return 0, GENESIS
            self._head.create()
            head = self._head.read() or (0, GENESIS)
        if head[0] and not self._path.exists():
            raise self._integrity_error("is gone, though its head is there")
        return head

    def _connect(self) -> None:
        if self._path is None and self._db is not None:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            return
        if self._db is not None:
            self._db.close()
        if self._look and self._path is not None:
            self._db = connect_to_read(self._path) if self._path.exists() else connect(None)
        else:
            self._db = connect(self._path)

    def _read_all(self) -> None:
        """Verifies the chain from the first row and adds up what was spent."""
        self._spending = Spending()
        self._sequence = 0
        self._digest = GENESIS
        self._settled = 0
        rows = self._connected.execute(SELECT)
        for sequence, *values, previous, digest in rows.fetchall() if self._look else rows:
            if (sequence, previous) != (self._sequence + 1, self._digest):
                raise self._integrity_error(f"has a gap before row {sequence}")
            if digest != digest_of(sequence, values, previous):
                raise self._integrity_error(f"was changed at row {sequence}")
            entry = Entry.of(sequence, values)
            self._account(entry.run, entry.round, entry.recipient, entry.mechanism, digest)
            if entry.kind == "lost":
                self._settled = sequence

    def _digest_at(self, sequence: int, db: sqlite3.Connection) -> bytes | None:
        """The digest of a row, None if there is no such row."""
        if sequence == 0:
            return GENESIS
        row = db.execute("SELECT digest FROM debit WHERE seq = ?", (sequence,)).fetchone()
        return bytes(row[0]) if row else None

    def _one(self, question: str, *values: object) -> int:
        try:
            return int(self._connection().execute(question, values).fetchone()[0])
        except (sqlite3.Error, OSError) as error:
            self._reread()
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> LedgerError:
        return LedgerError(
            f"The ledger {self._name} can't be used ({error}), so nothing is released; check the "
            "folder's space and permissions: it is tried again by itself."
        )

    def _integrity_error(self, why: str) -> LedgerError:
        return LedgerError(f"The ledger {self._name} {why}. {_ADVICE}")
