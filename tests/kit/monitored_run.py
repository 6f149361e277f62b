"""Real daemons, the first of them watched."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import TESTS, script
from node.config import ExperimentConfig
from node.experiments import local_cluster, provisioning
from node.experiments.resolve import resolve
from node.observability import status
from node.records import journal
from peer.errors import TemporaryFailure

HERE = "n0"
ANSWERABLE = ("waiting for peers", "running", "lingering")
"""Before, it does not listen; afterwards, it has said goodbye."""
PRIVACY = {"sigma": 2.0, "delta": 1e-3, "clip": 1.0, "rate": 0.25, "batch": 90}


@dataclass(frozen=True)
class Watched:
    """The report of `watched.py`, and the watched daemon's journal."""

    report: dict[str, Any]
    events: list[dict[str, Any]]
    asked: int
    """Answers to `status` while the rounds went on."""
    others: float
    """Share of this machine's processor time that went to anything else during the run; 0 where
    that is unknown.
    """

    @property
    def slowest(self) -> list[tuple[float, str]]:
        """(CPU seconds, which callback), slowest first."""
        return [(seconds, what) for seconds, what in self.report["slowest"]]

    @property
    def blocking(self) -> dict[str, int]:
        """ "call < frames" -> how often, while neighbors could be waiting for an answer of this
        daemon.
        """
        found: dict[str, int] = {}
        for entry, count in self.report["blocking"].items():
            state, _, what = entry.partition(": ")
            if state in ANSWERABLE:
                found[what] = found.get(what, 0) + count
        return found

    @property
    def rounds(self) -> int:
        return sum(event["event"] == "round" for event in self.events)

    def heartbeats(self, *, moving: bool = False) -> list[float]:
        """Round trips in seconds while the rounds went on; with `moving` those during which frames
        came or went.
        """
        found, before = [], 0
        for state, seconds, frames in self.report["heartbeats"]:
            if state == "running" and (frames > before or not moving):
                found.append(seconds)
            before = frames
        return found


def config(
    *, nodes: int, task: dict[str, Any], train: dict[str, Any], **sections: dict[str, Any]
) -> ExperimentConfig:
    values: dict[str, Any] = {
        "task": {"data": "digits", **task},
        "train": train,
        "privacy": PRIVACY,
        "experiment": {"nodes": nodes, "seed": 1},
    }
    return ExperimentConfig(**{**values, **sections})


def watch(folder: Path, run: ExperimentConfig, loop: str, *spoils: str) -> Watched:
    """Plays the run to its end, asking the watched daemon for its status meanwhile."""
    folder.mkdir(exist_ok=True)
    report, before = folder / "report.json", _busy()
    with local_cluster._reserved(2 * run.experiment.nodes) as ports:
        sealed, homes = provisioning.local(
            folder / "run", resolve(run), list(zip(ports[::2], ports[1::2], strict=True))
        )
        processes = [
            _start(
                home,
                script("monitored_daemon", str(home / "node.toml"), str(report), loop, *spoils),
            )
            if name == HERE
            else _start(
                home,
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "peerpoise",
                    "run",
                    "--config",
                    str(home / "node.toml"),
                    "--loop",
                    loop,
                ],
            )
            for name, home in homes.items()
        ]
        try:
            asked = _ask(processes, status.place(sealed.run_id, HERE))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    codes = [process.returncode for process in processes]
    assert not any(codes), [(home / "daemon.log").read_text() for home in homes.values()]
    events = journal.read(homes[HERE] / "journal.jsonl")
    return Watched(json.loads(report.read_text()), events, asked, _share_of_others(before))


def _ask(processes: list[subprocess.Popen[bytes]], socket: Path) -> int:
    """How often a status came while the daemons ran; ends with them."""
    answers, end = 0, time.monotonic() + 150
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        with suppress(TemporaryFailure):
            answers += status.query(socket)["state"] == "running"
        time.sleep(0.2)
    return answers


def _busy() -> tuple[float, float, float]:
    """Seconds so far: elapsed × cores, processors busy (0 where that is unknown), this test and its
    children.
    """
    own = sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    stat, busy = Path("/proc/stat"), 0.0
    if stat.exists():
        user, nice, system, _, _, interrupt, soft, steal, *_ = map(
            int, stat.read_text(encoding="utf-8").splitlines()[0].split()[1:]
        )
        busy = (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() * (os.cpu_count() or 1), busy, own


def _share_of_others(before: tuple[float, float, float]) -> float:
    elapsed, busy, own = (now - then for now, then in zip(_busy(), before, strict=True))
    return max(0.0, busy - own) / elapsed


def _start(home: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (home / "daemon.log").open("wb") as log:
        return subprocess.Popen(
            arguments,
            cwd=TESTS,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
