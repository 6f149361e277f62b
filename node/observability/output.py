"""Documents on standard output, whatever else is printed, and pipes whose reader has gone."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

UNBOUNDED = 100_000
"""Columns where no terminal has any: nothing is cut or folded there."""

_documents: list[TextIO] = []
"""Where documents go in place of standard output, which somebody else's code may print to."""


def print_json(value: object, indent: int | None = 2) -> None:
    """In ASCII: programs read it, whatever the locale."""
    out = _documents[-1] if _documents else sys.stdout
    print(json.dumps(value, indent=indent), file=out, flush=True)


def screen(*, soft_wrap: bool = False) -> Console:
    """Standard output, for tables: as wide as its terminal, or as the tables if it is none.
    `soft_wrap`: prose beside them is not broken into lines."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=soft_wrap)
    if not console.is_terminal:
        console.width = UNBOUNDED
    return console


@contextmanager
def documents_only() -> Iterator[None]:
    """Within it standard output carries documents alone: what else is printed, by native code too,
    goes to standard error."""
    out = sys.stdout
    out.flush()
    with _apart(out) as documents:
        _documents.append(documents)
        sys.stdout = sys.stderr
        try:
            yield
        finally:
            sys.stdout = out
            _documents.remove(documents)


@contextmanager
def _apart(out: TextIO) -> Iterator[TextIO]:
    """A stream to where `out` goes, of which nobody else has the number; `out` itself where it has
    none.
    """
    try:
        number = out.fileno()
    except (OSError, ValueError):
        yield out
        return
    with os.fdopen(os.dup(number), "w", encoding="utf-8") as documents:
        os.dup2(sys.stderr.fileno(), number)
        try:
            yield documents
        finally:
            with suppress(OSError):  # of what was printed aside
                out.flush()
            os.dup2(documents.fileno(), number)
            silence(documents)  # what could not be written was said already


def unread(out: TextIO) -> bool:
    """Has the reader of this pipe gone?"""
    try:
        number = out.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def silence(out: TextIO) -> None:
    """What is still to be written goes nowhere: Python would complain when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)
