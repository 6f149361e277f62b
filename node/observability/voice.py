"""What a daemon says on standard error: one line for each event of its journal that is worth one.

A terminal that is held (Ctrl-S), or a pipe that nobody reads, must not hold up the event loop, so a
thread writes. What others chose is cut to one line without terminal escapes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, TextIO, TypeAlias

from node.observability.sentences import Sentences
from node.records.journal import plain
from peer.codec import printable
from peer.message import Peer

Form: TypeAlias = Literal["text", "json"]
LONGEST = 2000
"""Characters of a line."""
AT_ONCE, EVERY_S = 6, 10.0
"""Lines about one neighbor: so many at once, then one in so many seconds."""
WAITING = 1000
"""Lines that wait to be written; further ones are left out."""
CLOSE_S = 2.0
"""How long the end of a process waits for its last lines."""
PRIORITIES = {"info": "<6>", "warning": "<4>"}
"""As systemd's journal reads them at the beginning of a line: sd-daemon(3)."""


def _now() -> datetime:
    return datetime.now().astimezone()


class Voice:
    """Thread-safe. `quiet`: only warnings are said."""

    def __init__(
        self,
        sentences: Sentences,
        *,
        form: Form = "text",
        quiet: bool = False,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self.form, self.quiet = form, quiet
        self.on_terminal = form == "text" and sys.stderr.isatty()
        """Only its user reads what is said; anything else may be kept and passed on."""
        self._sentences, self._now = sentences, now
        self._limiter = Limiter()
        self._writer: Writer | None = None
        self._lock = threading.Lock()

    def hear(self, event: str, fields: Mapping[str, object]) -> None:
        """An event of the journal, with its fields; it is said if it is worth a line."""
        now = self._now()
        with self._lock:
            text = printable(self._sentences.of(event, dict(fields), now), LONGEST)
            level = "warning" if event == "warning" else "info"
            if not text or (self.quiet and level == "info"):
                return
            peer = fields.get("peer")
            left_out = self._limiter.left_out(str(peer), now.timestamp()) if peer else 0
            if left_out is None:
                return
            if left_out:
                text += f" ({left_out} lines about {peer} were left out)"
            if self._writer is None:
                self._writer = Writer()
            self._writer.put(self._line(level, event, text, fields, now))

    def close(self) -> None:
        """Waits until all is written, but not for long."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _line(
        self, level: str, event: str, text: str, fields: Mapping[str, object], now: datetime
    ) -> str:
        assert self._writer is not None
        if self.form == "json":
            about = {
                "time": now.astimezone(UTC).isoformat(timespec="milliseconds"),
                "level": level,
                "node": self._sentences.node,
                "run": self._sentences.run.run_id,
                "event": event,
            }
            return json.dumps(plain({**about, **fields, "text": text}))
        if self._writer.in_journal:
            return PRIORITIES[level] + text
        return now.strftime("%H:%M:%S " if self.on_terminal else "%Y-%m-%d %H:%M:%S ") + text


class Limiter:
    """A token bucket for each neighbor."""

    def __init__(self) -> None:
        self._buckets: dict[Peer, tuple[float, float, int]] = {}
        """Neighbor -> its tokens, when they were counted, and lines left out since the last."""

    def left_out(self, peer: Peer, now: float) -> int | None:
        """How many lines about it were left out since the last one; None: this one is, too."""
        tokens, counted, count = self._buckets.get(peer, (float(AT_ONCE), now, 0))
        elapsed = max(0.0, now - counted)  # clocks of people are set back
        tokens = min(AT_ONCE, tokens + elapsed / EVERY_S)
        passes = tokens >= 1
        self._buckets[peer] = (tokens - 1, now, 0) if passes else (tokens, now, count + 1)
        return count if passes else None


class Writer:
    """Lines to standard error, by a thread."""

    def __init__(self) -> None:
        self._stream = _own_stream()
        self.in_journal = _leads_to_journal(self._stream)
        """It is systemd's journal, which keeps the time of each line itself."""
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write, name="voice", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        """A full disk, or a pipe without a reader, costs the line, not the run."""
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):
                print(line, file=self._stream, flush=True)
        if self._stream is not sys.stderr:
            with suppress(OSError):
                self._stream.close()


def _own_stream() -> TextIO:
    """To where standard error goes, with a lock of its own: a thread that hangs in a write to
    `sys.stderr` would stop Python from ending.
    """
    try:
        number = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):
        return sys.stderr
    return os.fdopen(number, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors)


def _leads_to_journal(stream: TextIO) -> bool:
    """As systemd.exec(5) says: JOURNAL_STREAM has device and inode of what is connected to it."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"
