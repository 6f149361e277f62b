"""A ledger's rows are known again by whoever has the folder's key, and tell nothing to others."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from node.privacy.accountant import Mechanism, epsilon_pld
from node.privacy.known_rows import KEY_FILE, KnownRows, OtherName
from node.privacy.ledger import Ledger
from peer import failpoint
from peer.errors import ConfigurationError, LedgerError, StorageError

STRICT = Mechanism(sigma=2.0, rate=0.1)
ROWS = [f"row {k}".encode() for k in range(100)]


def known_rows(folder: Path) -> KnownRows:
    return KnownRows(folder, make_key=True)


def spend(folder: Path, name: str, mechanism: Mechanism = STRICT) -> float:
    with Ledger.open(folder, name) as ledger:
        ledger.debit("run", 0, "b", mechanism)
        return epsilon_pld(ledger.rows(), 1e-5)


def note(folder: Path, name: str, rows: list[bytes] = ROWS) -> KnownRows:
    """As a daemon does, whose ledger is open by then."""
    with Ledger.open(folder, name):
        known = known_rows(folder)
        known.add(name, known.digests(rows))
    return known


def test_rows_are_known_again_in_any_order(tmp_path: Path) -> None:
    known = note(tmp_path, "ward")
    epsilon = spend(tmp_path, "ward")
    digests = known.digests([*ROWS[:30:-1], *[b"else"] * 31])
    [other] = known.elsewhere("other", digests, delta=1e-5).names
    assert (other.name, other.share, other.epsilon) == ("ward", 0.69, epsilon)
    assert known.elsewhere("ward", digests, delta=1e-5).names == []
    assert known.elsewhere("other", digests, delta=1e-5, accepted=["ward"]).share == 0
    assert known.elsewhere("other", known.digests([b"else"]), delta=1e-5).share == 0


def test_rows_under_a_name_that_has_not_spent_are_nobodys(tmp_path: Path) -> None:
    known = note(tmp_path, "ward")
    assert known.elsewhere("other", known.digests(ROWS), delta=1e-5).names == []


def test_who_is_about_to_spend_on_them_under_another_name_is_noticed(tmp_path: Path) -> None:
    """Its daemon may wait for its neighbors for an hour."""
    known = note(tmp_path, "ward")
    with Ledger.open(tmp_path, "ward"):
        elsewhere = known.elsewhere("other", known.digests([*ROWS, *[b"else"] * 300]), delta=1e-5)
    assert elsewhere.names == [OtherName("ward", 0.25, 0.0)]
    assert elsewhere.share == 0.25, "how many are too many is the budget's to say"


def test_rows_without_a_ledger_are_a_loss(tmp_path: Path) -> None:
    """They are noted once there is one: without it somebody has lost what was spent."""
    known = note(tmp_path, "ward")
    spend(tmp_path, "ward")
    for part in ("sqlite", "head"):
        (tmp_path / f"ward.{part}").unlink()
    with pytest.raises(LedgerError, match="is gone, though the rows that it knows are there"):
        Ledger.open(tmp_path, "ward")
    with pytest.raises(LedgerError, match="is gone"):
        known.elsewhere("other", known.digests(ROWS), delta=1e-5)


def test_a_file_grows_as_its_rows_do(tmp_path: Path) -> None:
    """And what it is filled up with stays, so that two files of one ledger don't betray it."""
    known = note(tmp_path, "ward", [f"row {k}".encode() for k in range(1000)])
    earlier = known.read("ward")
    for last in range(1001, 1025):
        note(tmp_path, "ward", [f"row {k}".encode() for k in range(last)])
    later = known.read("ward")
    assert earlier is not None
    assert later is not None
    assert len(earlier) == len(later) == 1024
    assert len(np.intersect1d(earlier, later)) == 1000
    note(tmp_path, "ward", [b"one more"])
    assert known_rows(tmp_path).read("ward").size == 2048  # type: ignore[union-attr]


def test_shares_of_several_names_add_up(tmp_path: Path) -> None:
    """Otherwise data that were divided among many names would be new again."""
    for k in range(4):
        known = note(tmp_path, f"part{k}", ROWS[5 * k : 5 * k + 5])
        spend(tmp_path, f"part{k}")
    elsewhere = known.elsewhere("all", known.digests(ROWS), delta=1e-5)
    assert elsewhere.share == pytest.approx(0.2)
    assert [other.share for other in elsewhere.names] == [0.05] * 4


def test_what_has_no_guarantee_is_infinite_and_what_is_in_use_counts(tmp_path: Path) -> None:
    known = note(tmp_path, "ward")
    with Ledger.open(tmp_path, "ward") as ledger:
        ledger.mark("run", "none")
        [other] = known.elsewhere("other", known.digests(ROWS), delta=1e-5).names
    assert other.epsilon == float("inf")


def test_a_ledger_that_cant_vouch_is_no_free_one(tmp_path: Path) -> None:
    known = note(tmp_path, "ward")
    spend(tmp_path, "ward")
    (tmp_path / "ward.head").write_bytes(b"")
    with pytest.raises(LedgerError, match="ward has no readable head"):
        known.elsewhere("other", known.digests(ROWS), delta=1e-5)


def test_rows_accumulate(tmp_path: Path) -> None:
    note(tmp_path, "ward", ROWS[:50])
    known = note(tmp_path, "ward", ROWS[50:])
    spend(tmp_path, "ward")
    assert known.elsewhere("other", known.digests(ROWS), delta=1e-5).share == 1
    before = (tmp_path / "ward.rows").stat().st_mtime_ns
    note(tmp_path, "ward", ROWS)
    assert (tmp_path / "ward.rows").stat().st_mtime_ns == before, "nothing new, nothing written"


def test_the_file_tells_a_thief_nothing(tmp_path: Path) -> None:
    """Not even how many rows there are: their number is filled up."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, rows in ((here, ROWS), (there, ROWS[:3])):
        folder.mkdir(mode=0o700)
        note(folder, "ward", rows)
    mine, other = (KnownRows(folder).read("ward") for folder in (here, there))
    assert mine is not None
    assert other is not None
    assert not np.isin(other, mine).any(), "the same rows under another key"
    assert (here / "ward.rows").stat().st_size == (there / "ward.rows").stat().st_size
    assert len(np.unique(mine)) == 1024
    assert np.isin(KnownRows(here).digests(ROWS), mine).all(), "the power check: with the key"
    for name in (KEY_FILE, "ward.rows"):
        assert stat.S_IMODE((here / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("count", [1024, 1025, 5000])
def test_files_have_a_power_of_two_of_digests(tmp_path: Path, count: int) -> None:
    known = note(tmp_path, "ward", [str(k).encode() for k in range(count)])
    digests = known.read("ward")
    assert digests is not None
    assert len(digests) == 1 << (count - 1).bit_length()
    assert (np.diff(digests.astype(float)) >= 0).all()


def test_the_key_is_made_once(tmp_path: Path) -> None:
    """By many processes at the same time: all have the same one."""
    code = (
        "import sys; from pathlib import Path; from node.privacy.known_rows import KnownRows; "
        "print(KnownRows(Path(sys.argv[1]), make_key=True).digests([b'row'])[0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    assert len(KnownRows(tmp_path).digests(ROWS)) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["short", "readable", "gone", "another"])
def test_a_key_that_cant_be_used_is_refused(tmp_path: Path, fault: str) -> None:
    note(tmp_path, "ward")
    key = tmp_path / KEY_FILE
    sentence = {
        "short": "is no key of 32 bytes",
        "readable": f"run: chmod 600 {key}",
        "gone": "is gone, the key of the rows",
        "another": "was made with another key",
    }[fault]
    if fault == "short":
        key.write_bytes(b"short")
    elif fault == "readable":
        key.chmod(0o640)
    elif fault == "another":
        key.write_bytes(os.urandom(32))
    else:
        key.unlink()
    with pytest.raises(LedgerError, match=sentence):
        known_rows(tmp_path).read("ward")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_rows_are_refused(tmp_path: Path, damage: str) -> None:
    known = note(tmp_path, "ward")
    spend(tmp_path, "ward")
    path = tmp_path / "ward.rows"
    content = path.read_bytes()
    changed = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    path.write_bytes({"cut": content[:-8], "changed": changed, "empty": b""}[damage])
    with pytest.raises(LedgerError, match="is damaged; restore it"):
        known.elsewhere("other", known.digests(ROWS), delta=1e-5)
    with pytest.raises(LedgerError, match="is damaged; restore it"):
        known.add("ward", known.digests(ROWS))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = note(tmp_path, "ward", ROWS[:50])
    before = (tmp_path / "ward.rows").read_bytes()
    monkeypatch.setitem(
        failpoint._ARMED, "before_ledger_rows_rename", failpoint._Armed("enospc", 1)
    )
    with pytest.raises(StorageError, match=r"ward\.rows can't be written"):
        known.add("ward", known.digests(ROWS))
    assert (tmp_path / "ward.rows").read_bytes() == before
    assert {path.name for path in tmp_path.glob("*rows*")} == {KEY_FILE, "ward.rows"}


# -- looking at a ledger ---------------------------------------------------------------------------


def test_looking_makes_nothing_and_disturbs_nobody(tmp_path: Path) -> None:
    with Ledger.look(tmp_path, "ward") as nothing:
        assert (nothing.head[0], nothing.rows(), nothing.runs()) == (0, [], [])
    assert list(tmp_path.iterdir()) == []
    with Ledger.open(tmp_path, "ward") as ledger:
        ledger.debit("run", 0, "b", STRICT)
        with Ledger.look(tmp_path, "ward") as look:
            ledger.debit("run", 1, "b", STRICT)
            assert look.head[0] == 1
            with pytest.raises(LedgerError):
                look.debit("run", 9, "b", STRICT)
        with Ledger.look(tmp_path, "ward") as look:
            assert look.rows() == ledger.rows()
            assert look.head == ledger.head
    with Ledger.look(tmp_path, "ward") as look:
        assert look.head[0] == 2
    with Ledger.open(tmp_path, "ward") as ledger:
        assert ledger.head[0] == 2


def test_looking_at_what_was_set_back_or_has_no_name(tmp_path: Path) -> None:
    spend(tmp_path, "ward")
    (tmp_path / "ward.sqlite").unlink()
    with pytest.raises(LedgerError, match="is gone, though its head is there"):
        Ledger.look(tmp_path, "ward")
    with pytest.raises(ConfigurationError, match=r"data\.name"):
        Ledger.look(tmp_path, "../ward")
