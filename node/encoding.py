"""Text that people write: UTF-8, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path
from typing import IO

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotUtf8(ValueError):
    """`str(error)` says which text it is instead and what to do; a file's name stands before it."""


def opened(file: Path) -> IO[bytes]:
    """A file, unpacked where its name ends in .gz."""
    return gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        NotUtf8: it is in another encoding.
        OSError: it can't be read.
    """
    with opened(file) as stream:
        raw = stream.read()
    refuse_utf_16(raw[:4])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotUtf8(f"is not UTF-8 text (see line {line}); save it as UTF-8") from None


def refuse_utf_16(first: bytes) -> None:
    """`first` are the bytes that a file begins with, some four: text has no zeros.

    Raises:
        NotUtf8: it has.
    """
    if first.startswith(UTF_16) or b"\0" in first:
        raise NotUtf8("is UTF-16 text; save it as UTF-8")
