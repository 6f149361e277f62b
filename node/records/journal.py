"""The run's journal: JSON lines, a header at every start, then one line per event.

What may be written is the literal table EVENTS; any other event or field is a bug and raises.
Nothing private is in it: no loss or accuracy on private data, no drawn batch size, no n_i, no
histogram of labels, no vector. (Seconds of a phase are in it, as they can be seen on the wire too.)
`data` holds the digest of the private file so that a later reader can tell whether it changed;
somebody who guesses the whole file can confirm the guess with it. Diagnostics are made of releases
and of a public validation set; with a private one they tell of it too, as all that is sent does.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from node.encoding import Json
from peer import files
from peer.errors import StorageError

EVENTS: Mapping[str, frozenset[str]] = {
    event: frozenset(("event", "time", *fields.split()))
    for event, fields in {
        # start of a process
        "header": "node run configuration version seed machine platform python torch threads cores",
        "resume": "round checkpoint skipped reason",
        "data": "digest",
        "backend": "backend reason slow",
        "listening": "address neighbors",
        "figures": "metrics diagnostics",
        # state of the node: waiting, running, lingering, stopping, finished
        "state": "state reason",
        "warning": "text",
        # a round
        "phase": "round phase kind seconds bytes_sent",
        "round": "round seconds consensus_distance diagnostics",
        "test": "round metrics",
        "epsilon": "round total link lifetime lifetime_delta mode batches adjacency delta "
        "accountant against",
        "budget": "round share lifetime limit mode adjacency delta accountant against",
        "checkpoint": "round path seconds",
        # neighbors
        "waiting": "round peer since_s until_s reason",
        "waited": "round peer seconds",
        "peer": "round peer state reason",
        "lost_edge": "round phase peer reason",
        "partial_mix": "round phase peer",
        "refused": "round peer code",
        "rejected": "round peer code",
        "contradiction": "round phase peer told_by path",
        "outlier": "round peer kind times",
        "roster": "round version",
        "certificate": "expires",
        # the gate
        "release": "round recipient",
        "withheld": "round recipient reason",
        "counted": "run compositions lifetime lifetime_delta",
        "known": "name epsilon delta",
        # end of a process
        "end": "round reason signal exit_code wall_seconds complete params_digest metrics epsilon",
    }.items()
}
"""event -> the fields it may have. `metrics` of "test" and `diagnostics` of "round" have the names
that task and algorithm declare (`node.figures`); "figures" says which those are.
"""


class Journal:
    """Appends events to a file; every line is one write, so a crash tears at most the last one.
    Thread-safe.
    """

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Opens or continues the journal and writes the header (see `header`).

        Raises:
            StorageError: the file can't be opened or written.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = os.fdopen(files.keep(path, os.O_RDWR | os.O_APPEND), "a+b", buffering=0)
            _cut_torn_line(self._file.fileno())
        except OSError as error:
            raise files.storage_error(path, error) from None
        try:
            self.write("header", **header)
        except BaseException:
            self.close()
            raise

    def write(self, event: str, **fields: object) -> None:
        """Appends one line, with the wall-clock time; what is not finite becomes null.

        Raises:
            ValueError: an event or field that is not in EVENTS.
            StorageError: the disk is full or refuses; the journal is left whole.
        """
        entry = {
            "event": event,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **fields,
        }
        if unknown := entry.keys() - EVENTS.get(event, frozenset()):
            raise ValueError(
                f"the journal's event {event!r} has no field {', '.join(sorted(unknown))}"
            )
        line = json.dumps(plain(entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock:
            end = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file.fileno(), end)
                raise files.storage_error(self.path, error) from None

    def close(self) -> None:
        with self._lock:
            self._file.close()


def header(
    configuration: Mapping[str, object], *, node: str, run: str, seed: int, threads: int
) -> dict[str, object]:
    """What a reader needs to repeat the run: its configuration (run.toml, never node.toml), code,
    seed and machine.
    """
    return {
        "node": node,
        "run": run,
        "configuration": configuration,
        "version": code_version(),
        "seed": seed,
        "machine": platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": code_version("torch"),
        "threads": threads,
        "cores": os.cpu_count(),
    }


@cache
def code_version(package: str = "peerpoise") -> str:
    """The installed version of a package, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def run_of(path: Path) -> str | None:
    """The run whose header opens this journal; None: there is no journal, or its first line is
    damaged.
    """
    try:
        with path.open("rb") as file:
            run_id: str = json.loads(file.readline())["run"]
            return run_id
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(path: Path) -> list[Json]:
    """All events of a journal, without a torn last line.

    Raises:
        StorageError: there is no journal, or a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise StorageError(
            f"The journal {path} can't be read: {error.strerror or error}."
        ) from None
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise StorageError(f"The journal {path} is damaged: {error}.") from None


def round_seconds(path: Path, first: int) -> list[float]:
    """Seconds of every round before `first`, as often as it was finished; [] where the journal
    can't be read.
    """
    try:
        events = read(path)
    except StorageError:
        return []
    return [
        it["seconds"]
        for it in events
        if it["event"] == "round" and it["round"] < first and it.get("seconds")
    ]


def plain(value: object) -> Any:
    """The value as JSON has it: sets sorted, tuples as lists, what is not finite as None."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(inner) for key, inner in value.items()}
        case set() | frozenset():
            return sorted(plain(inner) for inner in value)
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def _cut_torn_line(descriptor: int) -> None:
    """Shortens the file to its last whole line."""
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)
