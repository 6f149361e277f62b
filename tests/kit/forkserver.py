"""Daemons that start in a second: each is forked from a process that has imported torch, and
nothing of ours.

A daemon of its own process, `python -m peerpoise`, spends three CPU seconds on imports of
libraries, which is most of what these tests would do. What is imported of ours, and all that
happens afterwards, is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = [
    "pytest",
    "torch",
    "torch.func",
    "pydantic",
    "cryptography.x509",
    "safetensors.torch",
    "rich.console",
]


def command(words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
    """`python -m peerpoise WORDS` in this process, with this environment; what it prints goes to
    the log.
    """
    os.environ.clear()
    os.environ.update(environ)
    nothing, out = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    )
    for ours, std in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(ours, std)
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = ["peerpoise", *words]
    runpy.run_module("node.cli.app", run_name="__main__")


class Forked:
    """As much of `subprocess.Popen` as is needed."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        self._process: Any = context.Process(target=command, args=(words, dict(environ), log))
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self) -> int:
        self._process.join()
        return int(self._process.exitcode)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
