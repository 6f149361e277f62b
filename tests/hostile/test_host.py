"""Another user of this machine, who prepares folders, links and files where a node is going to
write.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from node.config import NodeConfig, write
from node.data import partition
from node.experiments import provisioning
from node.observability import status
from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.records.checkpoint import save_model
from node.records.journal import Journal
from node.records.peer_heads import FILE, NeighborLedgerHeads
from peer import files
from peer.errors import IdentityError, LedgerError, StorageError
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import create_key, load_key
from peer.message import Layout
from peer.v1.peer_pb2 import SignedHead

STRANGER = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
MECHANISM = Mechanism(sigma=2.0, rate=0.1)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def remembered(folder: Path) -> None:
    it = NeighborLedgerHeads(folder / FILE)
    it.observe("a", SignedHead(label=b"x" * 32, sequence=1, digest=b"y" * 32, signature=b"z"))
    it.save()


def ledger(folder: Path) -> None:
    with Ledger.open(folder, "ward") as it:
        it.debit("run", 0, "b", MECHANISM)
        assert {path.suffix for path in folder.iterdir()} >= {
            ".sqlite",
            ".sqlite-wal",
            ".head",
            ".lock",
        }


def journal(folder: Path) -> None:
    Journal(folder / "journal.jsonl", {}).close()


WRITERS: dict[str, Callable[[Path], object]] = {
    "key": lambda folder: create_key(folder / "node.key"),
    "journal": journal,
    "ledger": ledger,
    "remembered": remembered,
    "model": lambda folder: save_model(
        folder / "m.safetensors", Layout((("w", (3,)),)), torch.zeros(3)
    ),
    "rows": lambda folder: partition.save(folder / "rows.npy", np.arange(3)),
    "node.toml": lambda folder: write(
        NodeConfig(name="a", identity=provisioning.OWN), folder / "node.toml"
    ),
}
"""What a node keeps, by what writes it."""


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
@pytest.mark.parametrize("what", WRITERS)
def test_what_a_node_keeps_is_its_own_whatever_the_umask(
    tmp_path: Path, what: str, mask: int
) -> None:
    """Also below a folder that everybody may look into."""
    with umask(mask):
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o755)
        for folder in (tmp_path / "open", files.ensure_dir(tmp_path / "new" / "folder")):
            WRITERS[what](folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "open").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["key", "journal", "ledger", "model", "rows", "node.toml"])
def test_no_name_that_can_be_foretold_is_a_way_into_other_files(tmp_path: Path, what: str) -> None:
    """Links and open files lie under every name that earlier versions wrote to first."""
    victim, home = tmp_path / "victim", tmp_path / "home"
    victim.write_text("mine")
    home.mkdir()
    names = (
        "node.key",
        "journal.jsonl",
        "ward.sqlite",
        "ward.head",
        "ward.lock",
        "m.safetensors",
        "rows.npy",
    )
    for name in (*names, "node.toml"):
        for draft in (f"{name}.tmp", f".{name}.{os.getpid()}", "ward.head.new"):
            (home / draft).unlink(missing_ok=True)
            (home / draft).symlink_to(victim)
    WRITERS[what](home)
    assert victim.read_text() == "mine"


def test_a_draft_that_lies_there_already_gets_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its name could be guessed."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    planted = tmp_path / f"{files.DRAFT}guessed"
    planted.touch(mode=0o666)
    planted.chmod(0o666)
    with pytest.raises(StorageError, match="File exists"):
        create_key(tmp_path / "node.key")
    assert planted.read_bytes() == b""
    assert not (tmp_path / "node.key").exists()


@pytest.mark.parametrize("name", ["journal.jsonl", "ward.lock", "ward.sqlite"])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
def test_a_file_that_stays_is_no_link_and_nobody_elses(
    tmp_path: Path, name: str, kind: str
) -> None:
    home, victim = files.ensure_dir(tmp_path / "home"), tmp_path / "victim"
    write = journal if name.startswith("journal") else ledger
    write(home)
    (home / name).rename(victim)
    before = victim.read_bytes()
    {"link": (home / name).symlink_to, "hard link": (home / name).hardlink_to}.get(
        kind, lambda _: None
    )(victim)
    if kind == "fifo":
        os.mkfifo(home / name)
    with pytest.raises((StorageError, LedgerError), match=r"can't be (written|made|used)"):
        write(home)
    assert victim.read_bytes() == before


@AS_ROOT
@pytest.mark.parametrize("what", ["key", "journal", "ledger"])
def test_another_users_file_is_not_written_to(tmp_path: Path, what: str) -> None:
    for name in ("node.key", "journal.jsonl", "ward.sqlite", "ward.lock"):
        (tmp_path / name).touch(mode=0o666)
        os.chown(tmp_path / name, STRANGER, STRANGER)
    with pytest.raises((StorageError, LedgerError, IdentityError)):
        WRITERS[what](tmp_path)
    assert all(
        path.read_bytes() == b"" for path in tmp_path.iterdir() if path.stat().st_uid == STRANGER
    )


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.parametrize("what", ["key", "ledger"])
def test_a_folder_that_others_can_write_to_holds_no_key_and_no_ledger(
    tmp_path: Path, mode: int, what: str
) -> None:
    tmp_path.chmod(mode)
    with pytest.raises((StorageError, LedgerError), match=f"run: chmod go-w {tmp_path}"):
        WRITERS[what](tmp_path)
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o755)
    WRITERS[what](tmp_path)  # the power check


def test_a_key_is_not_read_from_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    create_key(tmp_path / "node.key")
    tmp_path.chmod(0o775)
    with pytest.raises(IdentityError, match="run: chmod go-w"):
        load_key(tmp_path / "node.key")
    tmp_path.chmod(0o755)
    load_key(tmp_path / "node.key")


@AS_ROOT
def test_another_users_folder_holds_no_key(tmp_path: Path) -> None:
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(StorageError, match="another user"):
        create_key(tmp_path / "node.key")


def test_what_is_for_others_keeps_the_umasks_mode(tmp_path: Path) -> None:
    with umask(0o027):
        CertificateAuthority.create(tmp_path / "ca")
    assert stat.S_IMODE((tmp_path / "ca" / "ca.pem").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    os.close(files.create(tmp_path / f"{files.DRAFT}0123456789abcdef"))
    (tmp_path / "other").touch()
    files.forget_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.fixture
def squatted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files in which the name for status sockets is taken: by a folder with
    another's mode, and where this test may, another's owner."""
    with tempfile.TemporaryDirectory(prefix="pp", dir="/tmp") as name:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", name)
        taken = Path(name) / f"peerpoise-{os.getuid()}"
        taken.mkdir()
        taken.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(taken, STRANGER, STRANGER)
        yield Path(name)


def test_a_taken_folder_for_sockets_moves_them_into_the_nodes_own(squatted: Path) -> None:
    with pytest.raises(StorageError):
        status.folder()
    home = files.ensure_dir(squatted / "home")
    [path] = status.places("abcdefghijkl", "n0", home)
    assert path.parent == home
    (squatted / f"peerpoise-{os.getuid()}").rmdir()
    assert len(status.places("abcdefghijkl", "n0", home)) == 2, "the power check"
