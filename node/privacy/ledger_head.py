"""The two small files beside a ledger: its head (what was last committed) and its lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import struct
from pathlib import Path

from peer import files
from peer.errors import LedgerError, TemporaryFailure

GENESIS = bytes(32)
"""Digest before the first row."""

_SLOT = 4096
"""One block a slot: a write torn by a power cut can't reach the other."""

_RECORD = struct.Struct("<8sQ32s")
_MAGIC = b"PPHEAD01"
_LENGTH = _RECORD.size + 32


class Head:
    """(sequence, digest) in two alternating slots with checksums, each write fsynced.

    Read gives the higher of the valid slots, and keeps the file open: a debit must not depend on
    whether the system has a descriptor to give. A slot torn in writing leaves the other, older by
    one debit, whose bytes never left. Not covered: damage to the newer slot together with the loss
    of exactly the last row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def create(self, sequence: int = 0, digest: bytes = GENESIS) -> None:
        """A new head in the place of any other, on disk when this returns; that of an empty ledger
        unless told otherwise.

        Raises:
            OSError: the disk refuses.
        """
        new = self.path.with_name(files.DRAFT + secrets.token_hex(8))
        with os.fdopen(files.create(new), "wb") as file:
            file.write(_record(sequence, digest).ljust(_SLOT, b"\0") * 2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        files.sync(self.path.parent)

    def write(self, sequence: int, digest: bytes) -> None:
        """Replaces the older slot; on disk when this returns.

        Raises:
            OSError: the disk refuses, or no head was read.
        """
        os.pwrite(self._descriptor, _record(sequence, digest), _SLOT * (sequence % 2))
        os.fsync(self._descriptor)

    def read(self) -> tuple[int, bytes] | None:
        """The head, or None if there is no file or no valid slot in it.

        Raises:
            OSError: the disk refuses.
        """
        self.close()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        content = os.pread(self._descriptor, 2 * _SLOT, 0)
        slots = (_parse(content[start : start + _LENGTH]) for start in (0, _SLOT))
        return max(filter(None, slots), default=None)

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _record(sequence: int, digest: bytes) -> bytes:
    body = _RECORD.pack(_MAGIC, sequence, digest)
    return body + hashlib.sha256(body).digest()


def _parse(record: bytes) -> tuple[int, bytes] | None:
    body, checksum = record[: _RECORD.size], record[_RECORD.size :]
    if (
        len(record) != _LENGTH
        or hashlib.sha256(body).digest() != checksum
        or not body.startswith(_MAGIC)
    ):
        return None
    _, sequence, digest = _RECORD.unpack(body)
    return int(sequence), bytes(digest)


class Lock:
    """An flock on a file of its own, held until `close` or the end of the process.

    Raises:
        TemporaryFailure: another process holds it.
        LedgerError: the file can't be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = files.keep(path, os.O_RDWR)
        except OSError as error:
            raise LedgerError(
                f"The ledger's lock {path} can't be made ({error.strerror}); check the folder."
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise TemporaryFailure(
                f"Another process uses the ledger {path.stem} ({path}); one data set serves one "
                "daemon at a time: stop the other, or try again when it has ended."
            ) from None

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def in_use(path: Path) -> bool:
    """Does a process hold this lock?"""
    if not path.exists():
        return False
    try:
        Lock(path).close()
    except TemporaryFailure:
        return True
    return False
