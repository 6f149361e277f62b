"""The disk seam: files that are either whole or the old ones, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from peer.errors import StorageError
from peer.failpoint import failpoint


def replace(path: Path, data: bytes | Iterable[bytes | memoryview], point: str = "") -> None:
    """Writes `path` through a temporary file: write, fsync, rename, fsync of the folder. Pieces of it are asked for as
    they are written.

    `point` names the failpoints before_<point>_rename and after_<point>_rename.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.writelines((data,) if isinstance(data, bytes) else data)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint(f"before_{point}_rename")
        temporary.replace(path)
        failpoint(f"after_{point}_rename")
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise refused(path, error) from None


def made(folder: Path) -> Path:
    """The folder, made if need be (mode 0700).

    Raises:
        StorageError: it can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from None
    return folder


def sync(folder: Path) -> None:
    """Makes renames and deletions in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(path: Path, error: OSError) -> StorageError:
    """The sentence for a disk that refuses to write `path`."""
    return StorageError(f"{path} can't be written: {error.strerror or error}; free space or check permissions.")
