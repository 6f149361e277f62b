"""What the ledgers of one folder were called before: `renames.json`.

A rename is written down before the first file moves. From then on nobody can open the ledger under
either name until all of its files have moved; and never again under the old one, which would start
from ε 0. Neighbors know a ledger by a label made of its first name, so that name is kept, too.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from peer.errors import ConfigurationError, LedgerError

FILE = "renames.json"
PARTS = ("rows", "remembered.json", "sqlite", "sqlite-wal", "sqlite-shm", "head")
"""How the files of a ledger end, but for its lock, which remembers nothing."""


class LedgerNames(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    now: dict[str, str] = {}
    """Old name -> the one that came after it."""
    first: dict[str, str] = {}
    """Present name -> the first one."""

    @classmethod
    def read(cls, folder: Path) -> LedgerNames:
        """Raises LedgerError: the file is damaged, or the disk refuses."""
        path = folder / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError):
            raise LedgerError(
                f"{path}, which says what ledgers were called before, can't be read; restore it "
                "from a copy, so that no ledger starts again from ε 0."
            ) from None

    def check(self, folder: Path, name: str) -> None:
        """Asked before a ledger is opened.

        Raises:
            ConfigurationError: it has another name now.
            LedgerError: some of its files have moved, others not.
        """
        for old, new in self.now.items():
            if name in (old, new):
                check_no_copy(folder, old, new)
            if name in (old, new) and any(map(os.path.lexists, parts(folder, old))):
                raise LedgerError(
                    f"The ledger {old} was being renamed to {new} when that was interrupted; "
                    f"finish it: peerpoise ledger rename {old} {new}"
                )
        if name in self.now:
            new = self.present(name)
            raise ConfigurationError(
                f"The ledger {name} was renamed to {new}, which has what was spent; set data.name "
                f'= "{new}" in the node\'s file.'
            )

    def present(self, name: str) -> str:
        """What the ledger that once had this name is called now."""
        while name in self.now:
            name = self.now[name]
        return name

    def renamed(self, old: str, new: str) -> LedgerNames:
        """With one rename more."""
        first = {**self.first, new: self.first.get(old, old)}
        first.pop(old, None)
        now = {**self.now, old: new}
        now.pop(new, None)
        return LedgerNames(now=now, first=first)


def check_no_copy(folder: Path, old: str, new: str) -> None:
    """A rename that was interrupted leaves each file at one place.

    Raises:
        LedgerError: one is at both: an older copy was restored beside the ledger.
    """
    pairs = zip(parts(folder, old), parts(folder, new), strict=True)
    if twice := [source for source, target in pairs if all(map(os.path.lexists, (source, target)))]:
        raise LedgerError(
            f"{twice[0]} lies beside the ledger {new}, which {old} was renamed to: an old copy, "
            f"which would take its place; remove the files {old}.*"
        )


def parts(folder: Path, name: str) -> list[Path]:
    """The files that a ledger of this name may have."""
    return [folder / f"{name}.{part}" for part in PARTS]
