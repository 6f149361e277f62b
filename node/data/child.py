"""A program in a process of its own, asked in lines of JSON: for code that must not run in this
process.

It is started when it is first asked, and again once it has died. One that is late is killed.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

KEPT = ("PATH", "HOME", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
"""What it gets of this process's environment, which may hold secrets."""
ALWAYS = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Sets have one order in all processes, and libraries start no threads."""
LONGEST = 1 << 20
"""Bytes of an answer at most."""
_running: set[Child] = set()


class ChildError(Exception):
    """A child gave no answer."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code
        """Of its end, as `Popen.returncode`; None: it was late, or what it said is no answer."""


class Child:
    """A Python program that answers every line with one."""

    def __init__(self, *arguments: str) -> None:
        """`arguments`: of Python."""
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """None: it doesn't run."""
        return self._process.pid if self._process else None

    def ask(self, question: object, seconds: float) -> Any:
        """What it answers, within so many seconds; they include its start.

        Raises:
            ChildError: it does not. It is dead then.
        """
        with self._lock:
            process = self._process or self._start()
            try:
                line = _exchange(process, json.dumps(question).encode() + b"\n", seconds)
                return json.loads(line)
            except BaseException as error:  # else its answer would be taken for that to the next
                code = process.poll()
                self._end()
                if isinstance(error, OSError | ValueError | RecursionError):
                    raise ChildError(code) from None
                raise

    def end(self) -> None:
        """Kills it. Another one is started for the next question."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        process = self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for this process
            env={**kept, **ALWAYS},
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        _running.add(self)
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        _running.discard(self)
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


@atexit.register
def end_all() -> None:
    """Kills all children of this process."""
    for child in list(_running):
        child.end()


def _exchange(process: subprocess.Popen[bytes], question: bytes, seconds: float) -> bytes:
    """Writes a line and reads one, and waits no longer whatever the process does.

    Raises:
        ChildError: it died or is late, or what it said is no line.
        OSError: it died.
    """
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    deadline, answer = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        while b"\n" not in answer:
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready or len(answer) > LONGEST:
                raise ChildError(None)
            for key, _ in ready:
                if key.fileobj is stdout:
                    part = os.read(key.fd, 1 << 16)
                    answer += part
                    if not part:
                        raise ChildError(_code(process))
                elif question:
                    question = question[os.write(key.fd, question) :]
                else:
                    selector.unregister(stdin)
    return answer


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """Of a process that has closed its output, and so should have ended."""
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None
