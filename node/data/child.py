"""A program in a process of its own, asked in lines of JSON: for code that must not run in this
process.

It is started when it is first asked, and again once it has died. One that is late is killed.
Several questions are written at once, and answers are read as they come: taking turns is most of
what a question costs.
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
from collections.abc import Generator, Iterator, Sequence
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

    def __init__(self, code: int | None, start: str = "") -> None:
        super().__init__(code, start)
        self.code = code
        """Of its end, as `Popen.returncode`; None: it was late, or what it said is no answer."""
        self.start = start
        """Why it can't be started, in words; empty: it can."""


class Child:
    """A Python program that answers every line with one."""

    def __init__(self, *arguments: str, start_s: float = 0.0) -> None:
        """`arguments`: of Python; `start_s`: how many seconds more its start may take."""
        self._arguments, self._start_s = arguments, start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """None: it doesn't run."""
        return self._process.pid if self._process else None

    def ask(self, question: object, seconds: float) -> Any:
        """What it answers, within so many seconds. Raises as `ask_all`."""
        [answer] = self.ask_all([question], seconds)
        return answer

    def ask_all(self, questions: Sequence[object], seconds: float) -> Generator[Any, None, None]:
        """What it answers to one after another, each within so many seconds of when it is waited
        for. Nobody may ask it meanwhile; whoever stops before the last answer ends it.

        Raises:
            ChildError: it does not answer the next question. It is dead then.
        """
        with self._lock:
            if self._process:
                process, patience = self._process, seconds
            else:
                process, patience = self._start(), seconds + self._start_s
            text = b"".join(json.dumps(question).encode() + b"\n" for question in questions)
            try:
                for line in _exchange(process, text, len(questions), seconds, patience):
                    yield json.loads(line)
            except BaseException as error:  # else its answer would be taken for that to the next
                code = process.poll()
                self._end()
                if isinstance(error, OSError | ValueError | RecursionError):
                    raise ChildError(code) from None
                raise

    def end(self) -> None:
        """Kills it, whoever waits for an answer. Another one is started for the next question."""
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        try:
            process = subprocess.Popen(
                [sys.executable, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for this process
                env={**kept, **ALWAYS},
            )
        except OSError as error:
            raise ChildError(None, error.strerror or str(error)) from None
        self._process = process
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


def _exchange(
    process: subprocess.Popen[bytes], text: bytes, count: int, seconds: float, first: float
) -> Iterator[bytes]:
    """Writes lines and reads as many, and waits no longer for each whatever the process does: so
    many seconds, and for the first one as many as that says.

    Raises:
        ChildError: it died or is late, or what it said is no line, or more than was asked for.
    """
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    unwritten, answers = memoryview(text), b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        for further in reversed(range(count)):
            deadline = time.monotonic() + first
            first = seconds
            while b"\n" not in answers:
                left = deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready or len(answers) > LONGEST:
                    raise ChildError(None)
                for key, _ in ready:
                    if key.fileobj is stdout:
                        part = os.read(key.fd, 1 << 16)
                        answers += part
                        if not part:
                            raise ChildError(_code(process))
                    elif unwritten:
                        unwritten = unwritten[_write(key.fd, unwritten) :]
                    else:
                        selector.unregister(stdin)
            line, _, answers = answers.partition(b"\n")
            if answers and not further:
                raise ChildError(None)
            yield line


def _write(descriptor: int, data: memoryview) -> int:
    """How many bytes were taken; of a process that has died all, as what it said before comes
    first."""
    try:
        return os.write(descriptor, data)
    except BrokenPipeError:
        return len(data)


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """Of a process that has closed its output, and so should have ended."""
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None
