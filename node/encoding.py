"""Text that people write: UTF-8, with or without a byte-order mark; and what JSON is in types."""

from __future__ import annotations

import codecs
import errno
import unicodedata
import zlib
from pathlib import Path
from typing import IO, Any, TypeAlias

from node.packing import open_gzip

Json: TypeAlias = dict[str, Any]
"""An object of JSON or TOML whose values are looked up, as deep as they go. One that is only passed
on or written is a `Mapping[str, object]`.
"""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
"""How such files begin."""


class NotUtf8(ValueError):
    """`str(error)` says which text it is instead and what to do; a file's name stands before it."""


def opened(file: Path) -> IO[bytes]:
    """A file, unpacked where it is gzipped, whatever its name."""
    with file.open("rb") as stream:
        packed = stream.read(2) == GZIP
    return open_gzip(file) if packed else file.open("rb")


def read_text(file: Path) -> str:
    """The text of a file, with line feeds only at the ends of its lines.

    Raises:
        NotUtf8: it is in another encoding.
        OSError: it can't be read.
    """
    try:
        with opened(file) as stream:
            raw = stream.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    except (EOFError, zlib.error):
        raise OSError(errno.EIO, "it is cut or damaged") from None
    refuse_others(raw[:4])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotUtf8(f"is not UTF-8 text (see line {line}); save it as UTF-8") from None


def refuse_others(first: bytes) -> None:
    """`first` are the bytes that a file begins with, some four: text has no zeros.

    Raises:
        NotUtf8: it has, or it is a workbook of Excel.
    """
    if first.startswith(ZIP):
        raise NotUtf8("is a workbook or an archive, not text; export it as text in UTF-8")
    if first.startswith(UTF_16) or (b"\0" in first and any(first)):
        raise NotUtf8("is UTF-16 text; save it as UTF-8")
    if b"\0" in first:
        raise NotUtf8("is no text, but zeros, as after a crash; take another copy")


def composed(name: str) -> str:
    """A name with ü as one character: some systems, macOS among them, write it as two."""
    return unicodedata.normalize("NFC", name)
