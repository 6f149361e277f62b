"""A ledger gets another name, and what was spent goes with it, wherever that is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.privacy.accountant import Mechanism
from node.privacy.known_rows import KnownRows
from node.privacy.ledger import Ledger
from node.privacy.ledger_names import FILE, PARTS
from node.privacy.rename import rename
from node.records import peer_heads
from peer import failpoint
from peer.errors import ConfigurationError, LedgerError, PeerpoiseError, TemporaryFailure

STRICT = Mechanism(sigma=2.0, rate=0.1)


def fill(folder: Path, name: str) -> None:
    with Ledger.open(folder, name) as ledger:
        ledger.debit("run", 0, "b", STRICT)
    known = KnownRows(folder, make_key=True)
    known.add(name, known.digests([b"row"]))
    (folder / f"{name}.{peer_heads.FILE}").write_text("{}")


def spent(folder: Path, name: str) -> int | None:
    """Debits of the ledger, opened as a daemon does; None: it is refused."""
    try:
        with Ledger.open(folder, name) as ledger:
            return ledger.head[0]
    except PeerpoiseError:
        return None


def test_all_of_it_moves(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    rename(tmp_path, "old", "new")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"new.sqlite", "new.head", "new.rows", "new.lock", "new.remembered.json"} | {
        FILE,
        "rows.key",
    }
    assert spent(tmp_path, "new") == 1
    assert peer_heads.FILE in PARTS
    with pytest.raises(ConfigurationError, match="was renamed to new, which has what was spent"):
        Ledger.open(tmp_path, "old")
    known = KnownRows(tmp_path)
    [other] = known.elsewhere("third", known.digests([b"row"]), delta=1e-5).names
    assert other.name == "new"


def test_neighbors_know_it_by_its_first_name(tmp_path: Path) -> None:
    """So what they remember of it holds after a rename, too."""
    fill(tmp_path, "a")
    for old, new in (("a", "b"), ("b", "c")):
        rename(tmp_path, old, new)
    with Ledger.open(tmp_path, "c") as ledger:
        assert ledger.first_name == "a"
    with pytest.raises(ConfigurationError, match="was renamed to c"):
        Ledger.open(tmp_path, "a")
    rename(tmp_path, "c", "a")
    with Ledger.open(tmp_path, "a") as ledger:
        assert (ledger.first_name, ledger.head[0]) == ("a", 1)
    with Ledger.open(tmp_path, "other") as ledger:
        assert ledger.first_name == "other"


def test_a_name_that_has_not_spent_may_be_taken(tmp_path: Path) -> None:
    """A refused run leaves an empty ledger under the name that was new."""
    fill(tmp_path, "old")
    Ledger.open(tmp_path, "new").close()
    rename(tmp_path, "old", "new")
    assert spent(tmp_path, "new") == 1


def test_what_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    fill(tmp_path, "new")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match="two ledgers can't become one"):
        rename(tmp_path, "old", "new")
    for name in ("nobody", "old"):
        with pytest.raises(ConfigurationError, match="There is no ledger"):
            rename(tmp_path, name, "nobody" if name == "nobody" else "old")
    with pytest.raises(ConfigurationError, match="must be 1 to 64"):
        rename(tmp_path, "old", "../new")
    with Ledger.open(tmp_path, "old"), pytest.raises(TemporaryFailure, match="Another process"):
        rename(tmp_path, "old", "third")
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert {path: text for path, text in before.items() if path.suffix != ".lock"} == after
    rename(tmp_path, "old", "third")
    with pytest.raises(ConfigurationError, match="is what the ledger third was called before"):
        rename(tmp_path, "new", "old")
    assert (spent(tmp_path, "new"), spent(tmp_path, "third")) == (1, 1)


def test_damaged_names_open_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    rename(tmp_path, "old", "new")
    (tmp_path / FILE).write_text('{"now": ')
    for name in ("old", "new", "other"):
        with pytest.raises(LedgerError, match="can't be read; restore it"):
            Ledger.open(tmp_path, name)


POINTS = [
    "before_ledger_names_rename",
    "after_ledger_names_rename",
    *(f"before_ledger_move@{k}" for k in range(1, len(PARTS) + 1)),
    "after_ledger_moves",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_on_the_way_it_starts_from_nothing_under_no_name(tmp_path: Path, point: str) -> None:
    """What can be opened has the debit; then it is done again."""
    fill(tmp_path, "old")
    Ledger.open(tmp_path, "new").close()
    code = (
        "import sys; from pathlib import Path; from peer import failpoint; "
        "from node.privacy.rename import rename; failpoint.arm(); "
        "rename(Path(sys.argv[1]), 'old', 'new')"
    )
    name, _, hit = point.partition("@")
    environment = os.environ | {failpoint.VARIABLE: f"{name}=kill@{hit or 1}"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    if point == "before_ledger_names_rename":
        assert (spent(tmp_path, "old"), spent(tmp_path, "new")) == (1, 0), "it has not begun"
        known = KnownRows(tmp_path)
        assert known.elsewhere("new", known.digests([b"row"]), delta=1e-5).share == 1
    else:
        opened = [spent(tmp_path, name) for name in ("old", "new")]
        assert opened in ([None, None], [None, 1])
    for _ in range(2):
        rename(tmp_path, "old", "new")
        assert (spent(tmp_path, "old"), spent(tmp_path, "new")) == (None, 1)
    assert KnownRows(tmp_path).names() == ["new"]


def test_an_old_copy_beside_a_renamed_ledger_takes_nobodys_place(tmp_path: Path) -> None:
    """Restored from a backup of before the rename: the sentence must not advise to finish it."""
    with Ledger.open(tmp_path, "ward") as ledger:
        ledger.debit("run", 0, "b", STRICT)
    copies = {path: path.read_bytes() for path in tmp_path.glob("ward.*")}
    rename(tmp_path, "ward", "icu")
    with Ledger.open(tmp_path, "icu") as ledger:
        ledger.debit("run", 1, "b", STRICT)
        head = ledger.head
    for path, content in copies.items():
        path.write_bytes(content)
    for attempt in (
        lambda: rename(tmp_path, "ward", "icu"),
        lambda: Ledger.open(tmp_path, "icu"),
        lambda: Ledger.open(tmp_path, "ward"),
    ):
        with pytest.raises(LedgerError, match=r"an old copy, .* remove the files ward\.\*"):
            attempt()
    for path in copies:
        path.unlink(missing_ok=True)
    with Ledger.open(tmp_path, "icu") as ledger:
        assert ledger.head == head
