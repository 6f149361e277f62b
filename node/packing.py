"""How much a packed file may unpack to, so that two megabytes don't take all of the memory."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO

RATIO = 100
"""Times its size that a packed file may unpack to. Real data are far below; DEFLATE and RLE can
reach 1,000 and more."""
FREE = 64 << 20
"""Bytes that any file may unpack to."""
TOO_LARGE = (
    f"it would unpack to more than {RATIO} times its size; save it unpacked, if that is meant"
)


class Bomb(OSError):
    """`strerror` says what is wrong; a file's name stands before it."""

    def __init__(self) -> None:
        super().__init__(0, TOO_LARGE)


def limit(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to."""
    return max(FREE, RATIO * packed)


def refuse_bomb(packed: int, unpacked: int) -> None:
    """Raises Bomb: a file of `packed` bytes unpacks to too many."""
    if unpacked > limit(packed):
        raise Bomb


def open_gzip(file: Path) -> IO[bytes]:
    """What is in a gzipped file; reading raises Bomb where that is too much."""
    return io.BufferedReader(_Bounded(gzip.open(file), limit(file.stat().st_size)), 1 << 16)


class _Bounded(io.RawIOBase):
    """A stream that may be read up to so many bytes."""

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream = stream
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._stream.read(len(buffer))
        self._left -= len(piece)
        if self._left < 0:
            raise Bomb
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()
