"""The last three transactions of a ledger, cut at every byte and with bits flipped, in its database
and in its WAL: it says what it said before, or it is refused in a sentence.

In the short form at some bytes, in the long one at all of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit import LONG
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.privacy.ledger_database import Entry
from peer.errors import LedgerError

STRICT = Mechanism(sigma=2.0, rate=0.1, releases=3)
BEFORE, LAST = 30, 3
TRIALS = 40
"""Of one kind on one file, in the short form."""


@dataclass(frozen=True)
class Kept:
    """A ledger as a crash leaves it, and what it says."""

    folder: Path
    file: str
    """The one that is damaged."""
    content: bytes
    places: list[int]
    """The bytes of the last transactions."""
    entries: list[Entry]

    def says(self, trial: Path, content: bytes) -> list[Entry] | str:
        """What the ledger says with another content of the file, or why it is refused."""
        shutil.copytree(self.folder, trial)
        (trial / self.file).write_bytes(content)
        try:
            with Ledger.open(trial, "ward") as ledger:
                return ledger.entries()
        except LedgerError as error:
            return str(error)
        finally:
            shutil.rmtree(trial)


def debit(ledger: Ledger, rounds: range) -> None:
    for t in rounds:
        ledger.debit("run", t, "b", STRICT)


def in_the_wal(folder: Path) -> Kept:
    """The last transactions have not been folded into the database, which others fill."""
    with Ledger.open(folder / "live", "ward") as ledger:
        debit(ledger, range(BEFORE))
    with Ledger.open(folder / "live", "ward") as ledger:
        debit(ledger, range(BEFORE, BEFORE + LAST))
        shutil.copytree(folder / "live", folder / "kept")
        entries = ledger.entries()
    content = (folder / "kept" / "ward.sqlite-wal").read_bytes()
    assert len(content) > 3 * 4096, "a page or more for each"
    return Kept(folder / "kept", "ward.sqlite-wal", content, list(range(len(content))), entries)


def in_the_database(folder: Path) -> Kept:
    """There is no WAL that would hide what happens to the database."""
    with Ledger.open(folder / "kept", "ward") as ledger:
        debit(ledger, range(BEFORE))
    earlier = (folder / "kept" / "ward.sqlite").read_bytes()
    with Ledger.open(folder / "kept", "ward") as ledger:
        debit(ledger, range(BEFORE, BEFORE + LAST))
        entries = ledger.entries()
    content = (folder / "kept" / "ward.sqlite").read_bytes()
    assert not (folder / "kept" / "ward.sqlite-wal").exists()
    earlier = earlier.ljust(len(content), b"\0")
    places = [k for k, byte in enumerate(content) if byte != earlier[k]]
    assert len(places) > LAST * 100, "a row has two digests"
    return Kept(folder / "kept", "ward.sqlite", content, places, entries)


def cuts(kept: Kept) -> Iterator[bytes]:
    for place in some(kept.places, 1):
        yield kept.content[:place]


def flips(kept: Kept) -> Iterator[bytes]:
    """One bit: each of the database's, one of eight of the WAL's bytes."""
    bits = range(8) if kept.file.endswith("sqlite") and LONG else [None]
    for place in some(kept.places, 3 if kept.file.endswith("wal") else 1):
        for bit in bits:
            changed = bytearray(kept.content)
            changed[place] ^= 1 << (place % 8 if bit is None else bit)
            yield bytes(changed)


def some(places: list[int], step: int) -> list[int]:
    return places[::step] if LONG else places[:: len(places) // TRIALS]


@pytest.mark.timeout(3600 if LONG else 240)
@pytest.mark.parametrize("damage", [cuts, flips])
@pytest.mark.parametrize("make", [in_the_wal, in_the_database])
def test_no_debit_is_forgotten_in_silence(
    tmp_path: Path, make: Callable[[Path], Kept], damage: Callable[[Kept], Iterator[bytes]]
) -> None:
    kept = make(tmp_path)
    assert len(kept.entries) == BEFORE + LAST
    assert kept.says(tmp_path / "whole", kept.content) == kept.entries
    refusals = trials = 0
    for number, content in enumerate(damage(kept)):
        answer = kept.says(tmp_path / str(number), content)
        trials += 1
        if isinstance(answer, str):
            assert answer.startswith("The ledger ward "), answer
            assert "\n" not in answer
            refusals += 1
        else:
            assert answer == kept.entries, number
    assert trials >= TRIALS
    assert refusals > trials // 4, "the power check: what is damaged matters"


def test_both_slots_of_the_head_have_to_be_hit(tmp_path: Path) -> None:
    """The head's newer slot alone may be torn; the ledger knows its last row by itself."""
    kept = in_the_wal(tmp_path)
    head = kept.folder / "ward.head"
    whole = head.read_bytes()
    for slot in (0, 4096):
        for place in range(slot, slot + 80, 1 if LONG else 9):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 8)
            head.write_bytes(changed)
            assert kept.says(tmp_path / "trial", kept.content) == kept.entries
    os.truncate(head, 0)
    assert "no readable head" in kept.says(tmp_path / "trial", kept.content)
