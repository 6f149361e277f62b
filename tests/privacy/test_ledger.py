"""The ledger's rules: a debit is on disk before it returns, nothing committed is ever forgotten
unnoticed.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.privacy.accountant import Mechanism, Spent
from node.privacy.ledger import Ledger
from node.privacy.ledger_head import GENESIS, Head
from peer import failpoint
from peer.errors import ConfigurationError, LedgerError, TemporaryFailure

STRICT = Mechanism(sigma=2.0, rate=0.1, releases=3)
SHARED = Mechanism(sigma=2.0, rate=0.1, releases=3, batches="shared")


def opened(folder: Path) -> Ledger:
    return Ledger.open(folder, "digits", clock=lambda: "2030-01-01T00:00:00+00:00")


def crash_copy(folder: Path, to: Path) -> Path:
    """The files as a crash would leave them: the database is open, its WAL not folded in."""
    shutil.copytree(folder, to)
    return to


def test_rows_survive_and_are_run_length_coded(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        assert ledger.head == (0, GENESIS)
        for round in range(3):
            for recipient in ("a", "b", "c"):
                ledger.debit("run", round, recipient, STRICT)
                ledger.debit("other", round, recipient, SHARED)
        head = ledger.head
    with opened(tmp_path) as ledger:
        assert ledger.head == head
        assert head[0] == 18
        assert ledger.rows() == [
            Spent(STRICT, 9),
            Spent(SHARED, 3),
        ]  # a shared batch's round is one unit
        assert ledger.rows("run") == [Spent(STRICT, 9)]
        assert ledger.compositions == 12
        assert (
            ledger.last_round("run"),
            ledger.last_round("run", "z"),
            ledger.last_round("none"),
        ) == (2, -1, -1)
        assert ledger.count("run", 1) == 3


def test_a_second_debit_of_the_same_answer_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.debit("run", 0, "b", STRICT)
        with pytest.raises(LedgerError, match="already holds"):
            ledger.debit("run", 0, "b", STRICT)
        ledger.debit("run", 1, "b", STRICT)
        assert ledger.head[0] == 2


def test_a_mark_is_written_once_and_counts_as_no_round(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.mark("run", "none")
        ledger.mark("run", "none")
        assert ledger.head[0] == 1
        assert not ledger.rows()[0].mechanism.guaranteed
        assert ledger.last_round("run") == -1


def test_one_process_per_data_set(tmp_path: Path) -> None:
    with opened(tmp_path), Ledger.open(tmp_path, "other"):
        with pytest.raises(TemporaryFailure, match="Another process uses the ledger digits"):
            opened(tmp_path)
        code = "import sys; from pathlib import Path; from node.privacy.ledger import Ledger; "
        code += "Ledger.open(Path(sys.argv[1]), 'digits')"
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert "TemporaryFailure" in second.stderr
    opened(tmp_path).close()


def set_back(folder: Path, to: int, rows: int) -> tuple[int, bytes]:
    """A ledger of so many rows, whose database is that of `to` rows; the head that was lost."""
    for round in range(rows):
        with opened(folder) as ledger:
            ledger.debit("run", round, "b", STRICT)
            head = ledger.head
        if round + 1 == to:
            shutil.copy(folder / "digits.sqlite", folder / "old")
    (folder / "old").rename(folder / "digits.sqlite")
    return head


def test_what_was_lost_can_be_counted_as_spent(tmp_path: Path) -> None:
    """Files that were set back, and neighbors that remember: releases go on, at the whole price."""
    lost = set_back(tmp_path, to=2, rows=5)
    with pytest.raises(LedgerError, match="count-lost"):
        opened(tmp_path)
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        assert ledger.missing == 3
        assert ledger.count_lost("run", STRICT, 9) == 0
    with opened(tmp_path) as ledger:
        assert ledger.rows("run") == [Spent(STRICT, 11)]
        assert (ledger.last_round("run"), ledger.longest("run")) == (1, 2)
        ledger.check_remembered(*lost)
        ledger.debit("run", 2, "b", STRICT)
        after = ledger.head
        with pytest.raises(LedgerError, match="another history"):
            ledger.check_remembered(after[0], bytes(32))
    with opened(tmp_path) as ledger:
        ledger.check_remembered(*after)


def test_too_few_counted_leave_it_closed(tmp_path: Path) -> None:
    """Debits of another run are lost too: its owner has to count that one as well."""
    set_back(tmp_path, to=1, rows=9)
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        assert ledger.count_lost("run", STRICT, 3) == 5
    with pytest.raises(LedgerError, match="older than the head"):
        opened(tmp_path)
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        assert ledger.count_lost("other", STRICT, 5) == 0
    with opened(tmp_path) as ledger:
        assert ledger.rows() == [Spent(STRICT, 9)]
        assert ledger.rows("other") == [Spent(STRICT, 5)]


def test_a_shared_batch_is_counted_by_rounds(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.debit("run", 0, "b", SHARED)
    for part in ("sqlite", "head"):
        (tmp_path / f"digits.{part}").unlink()
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        assert ledger.count_lost("run", SHARED, SHARED.compositions(4)) == 0
    with opened(tmp_path) as ledger:
        assert ledger.rows() == [Spent(SHARED, 4)]


@pytest.mark.parametrize("point", ["before_ledger_count", "after_ledger_count"])
def test_a_count_that_fails_never_opens_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    set_back(tmp_path, to=1, rows=3)
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        monkeypatch.setitem(failpoint._ARMED, point, failpoint._Armed("eio", 1))
        with pytest.raises(LedgerError, match="nothing is released"):
            ledger.count_lost("run", STRICT, 5)
    with pytest.raises(LedgerError):
        opened(tmp_path)
    with Ledger.open(tmp_path, "digits", set_back=True) as ledger:
        assert ledger.count_lost("run", STRICT, 5) == 0
    opened(tmp_path).close()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "naïve name"])
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.name"):
        Ledger.open(tmp_path, name)


def test_another_thread_may_use_it(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        thread = threading.Thread(target=ledger.debit, args=("run", 0, "b", STRICT))
        thread.start()
        thread.join()
        assert ledger.head[0] == 1


def test_a_closed_ledger_releases_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.debit("run", 0, "b", STRICT)


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "ledger"
    opened(folder).close()
    assert folder.stat().st_mode & 0o077 == 0


# -- a failing disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize(
    ("point", "stands"),
    [
        ("before_ledger_append", 0),
        ("after_ledger_append", 0),
        ("before_ledger_head", 1),
        ("after_ledger_fsync", 1),
    ],
)
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_disk_error_releases_nothing_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, stands: int, action: str, kind: str
) -> None:
    with opened(tmp_path) if kind == "disk" else Ledger.in_memory() as ledger:
        ledger.debit("run", 0, "b", STRICT)
        monkeypatch.setitem(failpoint._ARMED, point, failpoint._Armed(action, 1))
        with pytest.raises(LedgerError, match="nothing is released"):
            ledger.debit("run", 1, "b", STRICT)
        assert ledger.head[0] == ledger.compositions == 1 + stands  # memory says what the disk says
        ledger.debit("run", 2, "b", STRICT)
        assert ledger.head[0] == ledger.compositions == 2 + stands


def test_a_debit_is_synced_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row by SQLite, the head by us: where the disk refuses to sync, nothing is released."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(tmp_path) as ledger:
        [full] = ledger._connected.execute("PRAGMA synchronous").fetchone()
        assert full >= 2, "FULL or more"
        with monkeypatch.context() as at:
            at.setattr(os, "fsync", refuse)
            with pytest.raises(LedgerError, match="nothing is released"):
                ledger.debit("run", 0, "b", STRICT)
        ledger.debit("run", 1, "b", STRICT)


def test_a_debit_needs_no_new_descriptor(tmp_path: Path) -> None:
    """Strangers' connections may have taken all of them."""
    with opened(tmp_path) as ledger:
        ledger.debit("run", 0, "b", STRICT)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # what is open already stays so
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.open(os.devnull, os.O_RDONLY)
            for round in range(1, 250):
                ledger.debit("run", round, "b", STRICT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert ledger.head[0] == 250


def debit_until_refused(ledger: Ledger, run: str) -> None:
    for round in range(200):  # a new page is needed some time
        ledger.debit(run, round, "b", STRICT)


def test_a_full_database_and_a_read_only_one(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.debit("run", 0, "b", STRICT)
        for broken in ("PRAGMA max_page_count = 1", "PRAGMA query_only = 1"):
            before = ledger.head
            ledger._connected.execute(broken)
            with pytest.raises(LedgerError, match=r"full|readonly"):
                debit_until_refused(ledger, broken)
            assert ledger.head[0] >= before[0]
            ledger.debit(broken, 999, "b", STRICT)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """A real refusal by the kernel (EFBIG), in a process of its own; space returns and debits go
    on.
    """
    code = """
import resource, signal, sys
from pathlib import Path
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from peer.errors import LedgerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
m, done, refused = Mechanism(sigma=1.0, rate=0.1), 0, 0
ledger = Ledger.open(Path(sys.argv[1]), "digits")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for round in range(30):
    if round == 10: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    if round == 20: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try: ledger.debit("run", round, "b", m); done += 1
    except LedgerError: refused += 1
print(done, refused, ledger.head[0])
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    done, refused, rows = map(int, result.stdout.split())
    assert refused > 0
    assert done >= 20
    with opened(tmp_path) as ledger:
        assert ledger.head[0] == rows >= done


@pytest.mark.parametrize(
    "point",
    ["before_ledger_append", "after_ledger_append", "before_ledger_head", "after_ledger_fsync"],
)
@pytest.mark.parametrize("hit", [1, 2, 5])
def test_kill_9_around_a_debit(tmp_path: Path, point: str, hit: int) -> None:
    code = """
import sys
from pathlib import Path
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from peer import failpoint
failpoint.arm()
ledger = Ledger.open(Path(sys.argv[1]), "digits")
for round in range(9):
    ledger.debit("run", round, "b", Mechanism(sigma=1.0, rate=0.1))
    print("released", round, flush=True)
"""
    environment = os.environ | {failpoint.VARIABLE: f"{point}=kill@{hit}"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    released = result.stdout.count(b"released")
    assert released == hit - 1
    with opened(tmp_path) as ledger:
        assert ledger.head[0] in (released, released + 1)
        ledger.debit("run", ledger.last_round("run") + 1, "b", STRICT)


# -- damaged files ---------------------------------------------------------------------------------


def vouched(folder: Path) -> int | None:
    """Rows of the ledger in this folder, None if it refuses."""
    try:
        with opened(folder) as ledger:
            return ledger.head[0]
    except LedgerError:
        return None


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """Six debits, the last three in the WAL only."""
    with opened(tmp_path / "live") as ledger:
        for round in range(3):
            ledger.debit("run", round, "b", STRICT)
    with opened(tmp_path / "live") as ledger:
        for round in range(3, 6):
            ledger.debit("run", round, "b", STRICT)
        return crash_copy(tmp_path / "live", tmp_path / "crashed")


def fold(folder: Path, suffix: str) -> None:
    """Where the database itself is to be damaged: no WAL that would hide it."""
    if suffix == ".sqlite":
        assert vouched(folder) == 6
        assert not (folder / "digits.sqlite-wal").exists()


@pytest.mark.parametrize("suffix", [".sqlite", ".sqlite-wal"])
def test_cut_anywhere(crashed: Path, tmp_path: Path, suffix: str) -> None:
    """Every 61st byte here; with step 1 it takes minutes."""
    fold(crashed, suffix)
    size = (crashed / f"digits{suffix}").stat().st_size
    refusals = 0
    for cut in (*range(0, size, 61 * (1 + size // 20_000)), size - 1):
        trial = crash_copy(crashed, tmp_path / f"{cut}")
        os.truncate(trial / f"digits{suffix}", cut)
        rows = vouched(trial)
        assert rows in (None, 6), cut
        refusals += rows is None
        shutil.rmtree(trial)
    assert refusals > 10


@pytest.mark.parametrize("suffix", [".sqlite", ".sqlite-wal"])
def test_flipped_bits(crashed: Path, tmp_path: Path, suffix: str) -> None:
    fold(crashed, suffix)
    content = (crashed / f"digits{suffix}").read_bytes()
    dice, refusals = random.Random(0), 0
    for number in range(120):
        place = (
            dice.randrange(len(content) * 2 // 3, len(content))
            if suffix != ".sqlite"
            else dice.randrange(len(content))
        )
        trial = crash_copy(crashed, tmp_path / f"{number}")
        changed = bytearray(content)
        changed[place] ^= 1 << dice.randrange(8)
        (trial / f"digits{suffix}").write_bytes(changed)
        rows = vouched(trial)
        assert rows in (None, 6), place
        refusals += rows is None
        shutil.rmtree(trial)
    assert refusals > 5


def test_without_the_head_a_cut_wal_forgets_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power of the tests above: what SQLite alone does."""
    monkeypatch.setattr(Head, "write", lambda *_: None)
    with opened(tmp_path / "live") as ledger:
        for round in range(6):
            ledger.debit("run", round, "b", STRICT)
        trial = crash_copy(tmp_path / "live", tmp_path / "crashed")
    wal = trial / "digits.sqlite-wal"
    os.truncate(wal, wal.stat().st_size // 2)
    assert vouched(trial) in range(6)


def test_a_torn_head_is_no_loss_but_a_lost_one_is(crashed: Path) -> None:
    head = crashed / "digits.head"
    content = bytearray(head.read_bytes())
    content[20] ^= 1  # slot 0 holds row 6, slot 1 row 5
    head.write_bytes(content)
    assert vouched(crashed) == 6
    for lost in (b"", b"\0" * 8192, None):
        head.unlink()
        if lost is not None:
            head.write_bytes(lost)
        with pytest.raises(
            LedgerError, match=r"no readable head.*Nothing will be released.*Restore"
        ):
            opened(crashed)
        head.write_bytes(content)


def test_a_lost_database_is_noticed(crashed: Path) -> None:
    for file in crashed.glob("digits.sqlite*"):
        file.unlink()
    with pytest.raises(LedgerError, match="is gone"):
        opened(crashed)


def test_an_edited_row_is_noticed(crashed: Path) -> None:
    database = sqlite3.connect(crashed / "digits.sqlite")
    database.execute("UPDATE debit SET sigma = 1e9 WHERE seq = 2")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="changed at row 2"):
        opened(crashed)


def test_a_deleted_row_is_noticed(crashed: Path) -> None:
    database = sqlite3.connect(crashed / "digits.sqlite")
    database.execute("DELETE FROM debit WHERE seq = 2")
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="gap before row 3"):
        opened(crashed)


def test_a_newer_schema_is_refused(crashed: Path) -> None:
    database = sqlite3.connect(crashed / "digits.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LedgerError, match="newer peerpoise"):
        opened(crashed)


def test_neighbors_notice_a_rollback_of_everything(tmp_path: Path) -> None:
    with opened(tmp_path / "live") as ledger:
        ledger.check_remembered(0, GENESIS)
        ledger.debit("run", 0, "b", STRICT)
        old = crash_copy(tmp_path / "live", tmp_path / "old")
        ledger.debit("run", 1, "b", STRICT)
        remembered = ledger.head
        ledger.check_remembered(*remembered)
        ledger.check_remembered(0, GENESIS)
    with opened(old) as ledger:
        with pytest.raises(LedgerError, match="remembers more debits"):
            ledger.check_remembered(*remembered)
        with pytest.raises(LedgerError, match="remembers more debits"):
            ledger.debit("run", 1, "b", STRICT)
    with opened(old) as ledger:
        ledger.debit("run", 1, "c", STRICT)
        with pytest.raises(LedgerError, match="another history"):
            ledger.check_remembered(*remembered)


class LedgerMachine(RuleBasedStateMachine):
    """Debits, crashes and damage in any order: what was released is in the ledger, or the ledger
    refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.number = 0
        self.folder = self.root / "0"
        self.ledger = opened(self.folder)
        self.released: set[tuple[int, str]] = set()
        self.snapshots: list[tuple[int, Path]] = []

    def fresh(self) -> Path:
        self.number += 1
        return self.root / str(self.number)

    @rule(round=st.integers(0, 5), recipient=st.sampled_from("abc"))
    def debit(self, round: int, recipient: str) -> None:
        try:
            self.ledger.debit("run", round, recipient, STRICT)
        except LedgerError:
            assert (round, recipient) in self.released
        else:
            assert (round, recipient) not in self.released
            self.released.add((round, recipient))

    @rule(
        point=st.sampled_from(["after_ledger_append", "before_ledger_head", "after_ledger_fsync"]),
        round=st.integers(6, 9),
    )
    def debit_on_a_bad_disk(self, point: str, round: int) -> None:
        failpoint._ARMED[point] = failpoint._Armed("eio", 1)
        try:
            self.ledger.debit("bad", round, "a", STRICT)
        except LedgerError:
            pass
        else:
            raise AssertionError("released without a debit")
        finally:
            failpoint._ARMED.clear()

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = opened(self.folder)

    @rule()
    def crash(self) -> None:
        copy = crash_copy(self.folder, self.fresh())
        self.ledger.close()
        self.folder = copy
        self.ledger = opened(copy)

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.ledger.head[0], crash_copy(self.folder, self.fresh())))

    @precondition(lambda self: self.snapshots)
    @rule(which=st.randoms(use_true_random=False), head_too=st.booleans())
    def roll_back(self, which: random.Random, head_too: bool) -> None:
        rows, old = which.choice(self.snapshots)
        trial = crash_copy(old, self.fresh())
        if not head_too:
            shutil.copy(self.folder / "digits.head", trial)
        vouched_for = vouched(trial)
        if head_too:
            assert vouched_for == rows  # only a neighbor can tell
        else:
            assert vouched_for is None or vouched_for >= self.ledger.head[0]

    @rule(share=st.floats(0, 1), suffix=st.sampled_from([".sqlite", ".sqlite-wal"]))
    def cut(self, share: float, suffix: str) -> None:
        trial = crash_copy(self.folder, self.fresh())
        file = trial / f"digits{suffix}"
        if file.exists():
            os.truncate(file, int(share * file.stat().st_size))
        vouched_for = vouched(trial)
        assert vouched_for is None or vouched_for >= len(self.released)

    @rule()
    def lose_head(self) -> None:
        trial = crash_copy(self.folder, self.fresh())
        (trial / "digits.head").unlink()
        assert vouched(trial) is None

    @invariant()
    def spent_covers_released(self) -> None:
        assert self.ledger.head[0] == self.ledger.compositions >= len(self.released)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.root)


LedgerMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
