"""Cells in other processes: the same figures, no half cells, nobody left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit.sweeps import TINY, Here
from node.experiments.sweep import loop
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import load
from node.experiments.sweep.workers import TrialUpdate, Workers


def figures(folder):
    """Of every cell without noise, all but times."""
    timed = ("seconds", "summary")
    return {
        key: {name: value for name, value in record["figures"].items() if name not in timed}
        for key, record in folder.records.items()
        if record["configuration"]["privacy"]["mode"] == "none"
    }


def test_two_processes_give_the_figures_of_this_one(tiny, tmp_path, swept):
    sweep = load(tiny).only(["ring"])
    folder = Folder(tmp_path / "two")
    with folder.claimed(sweep):
        outcome = loop.run(sweep, folder, Workers(2, tmp_path / "log"), quiet=True)
    assert (outcome.finished, outcome.failed, outcome.left) == (8, {}, 0)
    assert figures(Folder(tmp_path / "two")) == figures(Folder(swept[1]))
    assert len(figures(folder)) == 8


def command(file, out, *more):
    return [sys.executable, "-P", "-m", "peerpoise", "sweep", str(file), "--out", str(out), *more]


def test_killed_it_goes_on_where_it_was(tiny, tmp_path):
    """kill -9 in the middle of a cell: finished cells stay as they are, of the unfinished one there
    is nothing.
    """
    slow = (
        "[sweep.settings.slow]\ntrain = { rounds = 1000000, evaluate_every = 0 }\nmethods = "
        "['dpdl']\n"
    )
    tiny.write_text(TINY.partition("[sweep.settings.private]")[0] + slow)
    out = tmp_path / "out"
    with subprocess.Popen(
        command(tiny, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("8/"):  # the next one takes for ever
                break
        [worker] = children(process.pid)
        process.send_signal(signal.SIGKILL)
    gone(worker)
    before = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    assert len(before) == 8
    sweep, runner = load(tiny).only(["ring"]), Here()
    assert loop.run(sweep, Folder(out), runner, quiet=True).left == 0
    assert runner.played == []
    assert {path: path.read_bytes() for path in (out / "cells").iterdir()} == before
    (out / "under-way" / "left").touch()
    Workers(1, out / "log").close()
    assert not (out / "under-way").exists()


def children(pid: int) -> list[int]:
    return [
        int(it)
        for it in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def gone(pid: int) -> None:
    """Waits until a process that is not ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor) as handle:
        ready, _, _ = select.select([handle], [], [], 30)
        assert ready, f"process {pid} is still there"


def told(workers: Workers) -> TrialUpdate:
    while (news := workers.wait()).share is not None:
        pass
    return news


def test_a_worker_that_is_killed_takes_its_cell_with_it_and_no_other(tiny, tmp_path):
    [trial, other] = load(tiny).only(["ring/xavg"]).rows[0].final(0.1)
    endless = {**trial.configuration, "train": {**trial.configuration["train"], "rounds": 1000000}}
    workers = Workers(1, tmp_path / "log")
    try:
        workers.start("a", endless)
        while (news := workers.wait()).share is None:
            pass
        [process] = workers._busy.values()
        process.kill()
        news = told(workers)
        assert (news.key, news.error) == (
            "a",
            f"Its process was killed by SIGKILL; see {tmp_path / 'log'}.",
        )
        workers.start("b", other.configuration)
        assert told(workers).record is not None
        assert [*(tmp_path / "under-way").iterdir()], "the killed one's"
    finally:
        workers.close()
    assert not (tmp_path / "under-way").exists(), "nothing is left of it"


def test_closing_ends_a_cell_in_the_middle(tiny, tmp_path):
    [trial, _] = load(tiny).only(["ring/xavg"]).rows[0].final(0.1)
    workers = Workers(1, tmp_path / "log")
    workers.start(
        "a", {**trial.configuration, "train": {**trial.configuration["train"], "rounds": 1000000}}
    )
    [process] = workers._busy.values()
    workers.close()
    assert process.returncode == 0


@pytest.mark.parametrize("threads", ["4", None])
def test_a_worker_has_one_thread_whatever_the_environment_says(
    tiny, tmp_path, monkeypatch, threads
):
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers = Workers(1, tmp_path / "log")
    try:
        workers.start("a", next(iter(load(tiny).rows[0].final(0.1))).configuration)
        [process] = workers._busy.values()
        assert b"OMP_NUM_THREADS=1\0" in Path(f"/proc/{process.pid}/environ").read_bytes()
    finally:
        workers.close()
