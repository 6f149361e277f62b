"""Gives a ledger another name."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from node.privacy.ledger import Ledger, check_name
from node.privacy.ledger_head import Lock
from node.privacy.ledger_names import FILE, LedgerNames, check_no_copy, parts
from peer import files
from peer.errors import ConfigurationError
from peer.failpoint import failpoint


def rename(folder: Path, old: str, new: str) -> None:
    """Moves all files of the ledger `old` to the name `new`, under which nothing may have been
    spent. If it is interrupted, do it again: until then nothing is released under either name.

    Raises:
        ConfigurationError: there is no such ledger, or the new name is another one's.
        TemporaryFailure: a process has one of them open.
        LedgerError, StorageError: one is damaged, or the disk refuses.
    """
    check_name(old)
    check_name(new)
    if old == new or not (Ledger.exists(folder, old) or LedgerNames.read(folder).now):
        raise ConfigurationError(
            f"There is no ledger {old} in {folder} to be renamed to {new}; peerpoise budget lists "
            "those there are."
        )
    with closing(Lock(folder / f"{old}.lock")), closing(Lock(folder / f"{new}.lock")):
        names = LedgerNames.read(folder)
        if names.now.get(old) != new:
            _check(folder, old, new)
            for part in parts(folder, new):
                part.unlink(missing_ok=True)
            written = names.renamed(old, new).model_dump_json().encode()
            files.atomic_write(folder / FILE, written, "ledger_names")
        check_no_copy(folder, old, new)
        try:
            _move(folder, old, new)
        except OSError as error:
            raise files.storage_error(folder / new, error) from None


def _check(folder: Path, old: str, new: str) -> None:
    """Raises what `rename` does."""
    with closing(Ledger.look(folder, old)) as ledger:
        if not ledger.head[0]:
            raise ConfigurationError(
                f"Nothing was released from {old} yet, so there is nothing to rename; write {new} "
                "as data.name in the node's file."
            )
    names = LedgerNames.read(folder)
    if new in names.now:
        if names.present(new) == old:  # it gets a name back
            return
        raise ConfigurationError(
            f"{new} is what the ledger {names.present(new)} was called before; choose another name."
        )
    with closing(Ledger.look(folder, new)) as ledger:
        if ledger.head[0]:
            raise ConfigurationError(
                f"There is a ledger {new} in {folder} already, under which something was released; "
                "two ledgers can't become one: choose another name."
            )


def _move(folder: Path, old: str, new: str) -> None:
    for source, target in zip(parts(folder, old), parts(folder, new), strict=True):
        failpoint("before_ledger_move")
        if os.path.lexists(source):
            os.replace(source, target)
    failpoint("after_ledger_moves")
    files.sync(folder)
    (folder / f"{old}.lock").unlink(missing_ok=True)
