"""`peerpoise health` as a container's HEALTHCHECK runs it: a process of its own, its exit code, its
CPU seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import cpu
from kit.status_document import DOCUMENT
from node.observability import status

PROGRAM = """
import resource, sys
from node.cli.main import main
try:
    main()
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    heavy = sorted({"torch", "grpc", "numpy", "rich", "dp_accounting"} & set(sys.modules))
    print(f"{heavy} {usage.ru_utime + usage.ru_stime}", file=sys.stderr)
"""


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Where daemons of this user have their sockets."""
    with tempfile.TemporaryDirectory(prefix="pp", dir="/tmp") as runtime:
        folder = Path(runtime) / "peerpoise"
        folder.mkdir(mode=0o700)
        yield folder


async def health(sockets: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", PROGRAM, "health", *options]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(sockets.parent)}
    return await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True
    )


async def test_a_daemon_that_answers_is_healthy_and_asking_is_cheap(sockets: Path) -> None:
    with status.serve(sockets / "run-n0.sock", lambda: DOCUMENT):
        pairs = [(await health(sockets), cpu.of_a_small_program()) for _ in range(3)]
    asked = [done for done, _ in pairs]
    assert {(done.returncode, done.stdout) for done in asked} == {(0, "n0: running\n")}
    said = [done.stderr.strip().rsplit(" ", 1) for done in asked]
    assert {heavy for heavy, _ in said} == {"[]"}
    assert min(float(seconds) for _, seconds in said) < 3 * min(small for _, small in pairs)


async def test_no_daemon_is_not_healthy(sockets: Path) -> None:
    done = await health(sockets)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        "peerpoise: No daemon of this user is running.",
    )


async def test_a_daemon_that_hangs_is_not_healthy(sockets: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(sockets / "run-n0.sock"))
        silent.listen()
        done = await health(sockets)
    assert done.returncode == 1
    assert "did not answer within 2 s" in done.stderr


async def test_ready_is_more_than_alive(sockets: Path) -> None:
    waiting: Any = {**DOCUMENT, "state": "waiting for peers"}
    with status.serve(sockets / "run-n0.sock", lambda: waiting):
        alive, ready = await health(sockets, "--json"), await health(sockets, "--ready")
    assert (alive.returncode, alive.stdout) == (0, '{"n0": "waiting for peers"}\n')
    assert ready.returncode == 1
    assert "n0 is not running rounds: it is waiting for peers." in ready.stderr
