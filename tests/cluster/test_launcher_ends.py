"""Whatever ends `peerpoise up`, its daemons end with it, in order, and keep their last complete
round.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kit import forkserver
from kit.clusters import events, until
from node.config import RunConfig, load
from node.observability import status
from peer.errors import TemporaryFailure

RUN = """
[task]
data = "digits"
[train]
rounds = 100000
evaluate_every = 0
checkpoint_every = 100000
[algorithm]
name = "d-psgd"
[privacy]
mode = "none"
[experiment]
nodes = 2
"""
HOMES = ("nodes/n0", "nodes/n1")
Up = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Starts `peerpoise up` in tmp_path/out."""
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    before = forkserver.children()
    started: list[subprocess.Popen[bytes]] = []

    def start(*more: str, **options: Any) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "peerpoise", "up", "run.toml", "--folder", "out", *more]
        streams: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
        } | options
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(words, cwd=tmp_path, env=environ, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if (tmp_path / "out" / "run.toml").exists():
        run = load(RunConfig, [tmp_path / "out" / "run.toml"], environ={}).run_id
        for home in HOMES:  # whom a test that failed has left behind
            with suppress(TemporaryFailure):
                os.kill(status.query(status.place(run, Path(home).name))["pid"], signal.SIGKILL)
    for child in (
        forkserver.children() - before
    ):  # daemons whose launcher has gone end by themselves
        with suppress(ChildProcessError):
            os.waitpid(int(child.partition(" ")[0]), 0)


async def playing(folder: Path) -> None:
    await until(lambda: all(len(events(folder / home, "round")) > 2 for home in HOMES))


async def ended_in_order(folder: Path) -> None:
    await until(lambda: all(events(folder / home, "end") for home in HOMES))
    for home in HOMES:
        [end] = events(folder / home, "end")
        assert (end["reason"], end["signal"]) == ("stopped", "SIGTERM")
        [kept] = events(folder / home, "checkpoint")
        last = events(folder / home, "round")[-1]["round"]
        assert kept["round"] in (last, last + 1), "one may be complete that is not yet noted"


@pytest.mark.cluster
async def test_daemons_end_with_a_launcher_that_is_killed(up: Up, tmp_path: Path) -> None:
    launcher = up()
    await playing(tmp_path / "out")
    launcher.kill()
    await ended_in_order(tmp_path / "out")


@pytest.mark.cluster
async def test_a_terminal_that_closes_is_sigterm(up: Up, tmp_path: Path) -> None:
    launcher = up()
    await playing(tmp_path / "out")
    launcher.send_signal(signal.SIGHUP)
    assert launcher.wait(30) == 128 + signal.SIGHUP
    await ended_in_order(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("metrics-*.txt")) == [
        "metrics-n0.txt",
        "metrics-n1.txt",
    ]


@pytest.mark.cluster
async def test_a_reader_that_goes_ends_it_without_a_word(up: Up, tmp_path: Path) -> None:
    launcher = up(
        "--set", "train.rounds=2000", stdout=subprocess.PIPE
    )  # a line is shown at each tenth
    assert launcher.stdout
    assert launcher.stderr
    await playing(tmp_path / "out")
    launcher.stdout.close()
    assert launcher.wait(90) == 128 + signal.SIGPIPE
    await ended_in_order(tmp_path / "out")
    assert launcher.stderr.read() == b""
