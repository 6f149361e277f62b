"""Which rows a ledger's data have, so that the same data under another name are known again.

Beside each ledger lies NAME.rows: of every row that was ever released from, the first 8 bytes of
HMAC-SHA256 under a key that only this folder has (rows.key, 32 random bytes, made once). Without
the key a file tells nothing: neither whether somebody's row is in it, nor, as it is filled up to a
power of two with what looks like rows, how many there are. Whoever has key and file can try rows.

Files are small: 8 to 16 bytes a row. They are written before the first debit of a run, whole or not
at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.privacy.accountant import epsilon_pld
from node.privacy.ledger import Ledger
from node.privacy.ledger_head import in_use
from peer import files
from peer.errors import LedgerError

KEY_FILE, KEY_BYTES = "rows.key", 32
ENDING = ".rows"
DTYPE = np.dtype("<u8")
RESTORE = "restore it from a copy (without one: docs/backup.md)"
_MAGIC, _SALT_BYTES = b"PPROWS01", 32
_LEAST = 1024
"""Digests in a file at least, so that small data sets look alike."""

Digests: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class OtherName:
    """A ledger that has rows of these data."""

    name: str
    share: float
    """Of the rows of these data, those that this ledger has."""
    epsilon: float
    """ε_total that was spent under this name; inf: there is no guarantee; 0: a daemon has it open
    and is about to spend.
    """


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What is known of data under other names."""

    share: float = 0.0
    """Of the rows of these data, those that any other ledger has."""
    names: Sequence[OtherName] = ()
    """The largest share first."""


class KnownRows:
    """The row digests of one folder of ledgers."""

    def __init__(self, folder: Path, *, make_key: bool = False) -> None:
        """`make_key`: if there is none yet. Without one nothing is known, and nothing can be added.

        Raises:
            LedgerError: the key is gone, damaged, or others can read it; or the disk refuses.
        """
        self._folder = folder
        path = folder / KEY_FILE
        try:
            self._key = _read_key(path)
            if not self._key and self.names():
                raise LedgerError(
                    f"{path} is gone, the key of the rows in {folder}, so data can't be known "
                    f"again; {RESTORE}."
                )
            if not self._key and make_key:
                self._key = _make_key(path)
        except OSError as error:
            raise LedgerError(f"{path} can't be used ({error.strerror or error}).") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here: whoever looks for rows and then notes its own has to be, or
        two that begin at once would not see each other. Waits for the other; the key's file is the
        lock, which must have been made.

        Raises:
            LedgerError: the key is gone, or the disk refuses.
        """
        path = self._folder / KEY_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise LedgerError(
                f"{path} can't be locked ({error.strerror}); its owner must be able to read and "
                "write it."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def digests(self, rows: Iterable[bytes]) -> Digests:
        """One of each row, [n], in their order; empty where there is no key, as nothing is known.
        A million take a second.
        """
        if not self._key:
            return np.empty(0, DTYPE)
        key, digest = self._key, hmac.digest
        return np.frombuffer(b"".join(digest(key, row, "sha256")[:8] for row in rows), DTYPE)

    def add(self, name: str, digests: Digests) -> None:
        """Notes these rows as some that the ledger has released from; on disk when this returns.

        Raises:
            LedgerError: what is there can't be read.
            StorageError: the disk refuses.
        """
        file = self._read(name)
        salt, before = file or (secrets.token_bytes(_SALT_BYTES), np.empty(0, DTYPE))
        if file and _known(digests, before).all():
            return
        rows = np.setdiff1d(before, self._filling(salt, len(before)))
        union = np.union1d(rows, digests)
        size = max(_LEAST, 1 << (len(union) - 1).bit_length())
        every = np.concatenate([union, self._filling(salt, size - len(union))])
        content = _MAGIC + self._mark + salt + np.sort(every).astype(DTYPE).tobytes()
        check = hashlib.sha256(content).digest()
        files.atomic_write(self._path(name), content + check, "ledger_rows")

    def _filling(self, salt: bytes, count: int) -> Digests:
        """What a file is filled up with: the same every time, or it would betray, compared with an
        older one, which digests are rows.
        """
        numbers = (number.to_bytes(8, "little") for number in range(count))
        made = (hmac.digest(self._key, salt + number, "sha256")[:8] for number in numbers)
        return np.frombuffer(b"".join(made), DTYPE)

    def read(self, name: str) -> Digests | None:
        """Sorted, those of nobody among them; None: it is not known which rows the ledger has.

        Raises:
            LedgerError: the file is damaged, or of another key.
        """
        file = self._read(name)
        return file and file[1]

    def _read(self, name: str) -> tuple[bytes, Digests] | None:
        """A file's salt, and its digests."""
        path = self._path(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"{path} can't be read ({error.strerror}).") from None
        body, check = content[:-32], content[-32:]
        start = len(_MAGIC) + len(self._mark)
        if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != check:
            raise LedgerError(f"{path}, by which data are known again, is damaged; {RESTORE}.")
        if body[len(_MAGIC) : start] != self._mark:
            raise LedgerError(
                f"{path} was made with another key than {self._folder / KEY_FILE}, so data can't "
                f"be known again; {RESTORE}."
            )
        salt, digests = body[start : start + _SALT_BYTES], body[start + _SALT_BYTES :]
        return salt, np.frombuffer(digests, DTYPE)

    def names(self) -> list[str]:
        """Ledgers whose rows are known."""
        return sorted(path.name.removesuffix(ENDING) for path in self._folder.glob(f"*{ENDING}"))

    def elsewhere(
        self, name: str, digests: Digests, *, delta: float, accepted: Collection[str] = ()
    ) -> Elsewhere:
        """Under which names but `name` and those `accepted` rows of these data were released from.
        ε at `delta`.

        Raises:
            LedgerError, ConfigurationError: a ledger that has some can't vouch for what was spent.
        """
        anywhere = np.zeros(len(digests), bool)
        names = []
        for other in self.names():
            rows = self.read(other) if other not in (name, *accepted) else None
            known = _known(digests, rows)
            epsilon = _spent(self._folder, other, delta) if known.any() else None
            if known.any() and epsilon is None and in_use(self._folder / f"{other}.lock"):
                epsilon = 0.0
            if epsilon is not None:
                anywhere |= known
                names.append(OtherName(other, float(known.mean()), epsilon))
        names.sort(key=lambda other: -other.share)
        return Elsewhere(float(anywhere.mean()) if names else 0.0, names)

    @property
    def _mark(self) -> bytes:
        """Says which key made a file (32 bytes)."""
        return hmac.digest(self._key, b"key of a ledger's rows", "sha256")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{ENDING}"


def _known(digests: Digests, known: Digests | None) -> NDArray[np.bool_]:
    """Which of these are among those known, which are sorted."""
    if known is None or not len(known):
        return np.zeros(len(digests), bool)
    places = np.searchsorted(known, digests).clip(max=len(known) - 1)
    are_known: NDArray[np.bool_] = known[places] == digests
    return are_known


def _spent(folder: Path, name: str, delta: float) -> float | None:
    """None: nothing was released under this name."""
    with closing(Ledger.look(folder, name)) as ledger:
        return epsilon_pld(ledger.rows(), delta) if ledger.head[0] else None


def _read_key(path: Path) -> bytes:
    """Empty: there is none.

    Raises:
        LedgerError: it is damaged, or others can read it.
        OSError: the disk refuses.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return b""
    if why := files.exposed(path):
        raise LedgerError(f"The key of the rows that ledgers know must be secret: {why}")
    if len(key) != KEY_BYTES:
        raise LedgerError(
            f"{path} is no key of {KEY_BYTES} bytes, so data can't be known again; {RESTORE}."
        )
    return key


def _make_key(path: Path) -> bytes:
    """Whole from the beginning, and made once, if two processes want to."""
    draft = path.with_name(files.DRAFT + secrets.token_hex(8))
    with os.fdopen(files.create(draft), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    files.sync(path.parent)
    return _read_key(path)
