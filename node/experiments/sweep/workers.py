"""Cells in several processes of this machine (`node.experiments.sweep.worker`), one thread of torch
each.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.encoding import Json
from peer import files


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialUpdate:
    """Of a cell: how far it is, its record, or why there is none."""

    key: str
    share: float | None = None
    record: Json | None = None
    error: str = ""
    trace: str = ""


class Runner(Protocol):
    """Where cells are run."""

    @property
    def slots(self) -> int:
        """How many cells it takes at a time."""
        ...

    def start(self, key: str, configuration: Mapping[str, object]) -> None: ...

    def wait(self) -> TrialUpdate:
        """The next that is heard of any cell that was started."""
        ...

    def close(self) -> None:
        """Ends what still runs."""
        ...


class Workers:
    """A worker that dies takes its one cell with it; another takes its place."""

    def __init__(self, jobs: int, log: Path) -> None:
        """`log`: a file for what workers say on standard error. Beside it is a folder for cells
        under way; what was killed before has left its own there."""
        self._jobs, self._log = jobs, log
        self._scratch = log.with_name("under-way")
        shutil.rmtree(self._scratch, ignore_errors=True)
        files.ensure_dir(self._scratch)
        self._idle: list[subprocess.Popen[str]] = []
        self._busy: dict[str, subprocess.Popen[str]] = {}
        self._heard: queue.SimpleQueue[tuple[subprocess.Popen[str], str]] = queue.SimpleQueue()

    @property
    def slots(self) -> int:
        return self._jobs

    def start(self, key: str, configuration: Mapping[str, object]) -> None:
        process = self._idle.pop() if self._idle else self._made()
        self._busy[key] = process
        assert process.stdin
        order = {"key": key, "configuration": configuration, "scratch": str(self._scratch)}
        with contextlib.suppress(BrokenPipeError):  # it died while idle: `wait` hears of it
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def wait(self) -> TrialUpdate:
        while True:
            process, line = self._heard.get()
            key = next((key for key, it in self._busy.items() if it is process), None)
            if key is None:
                self._idle = [it for it in self._idle if it is not process]  # it died while idle
                _close(process)
            elif not line:
                _close(self._busy.pop(key))
                return TrialUpdate(
                    key=key, error=f"Its process {_end(process.wait())}; see {self._log}."
                )
            else:
                update = TrialUpdate(**json.loads(line))
                if update.share is None:
                    self._idle.append(self._busy.pop(key))
                return update

    def close(self) -> None:
        for process in (*self._idle, *self._busy.values()):
            _close(process)
        for process in (*self._idle, *self._busy.values()):
            process.wait()
        self._idle, self._busy = [], {}
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _made(self) -> subprocess.Popen[str]:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PEERPOISE_DEBUG")
        }
        with os.fdopen(
            files.keep(self._log, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8"
        ) as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "node.experiments.sweep.worker"],
                env={**environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                self._heard.put((process, line))
        self._heard.put((process, ""))


def _close(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _end(code: int) -> str:
    return (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}"
    )
