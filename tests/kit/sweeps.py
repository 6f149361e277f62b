"""A tiny sweep on digits, a runner that plays cells in this process, and records made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.encoding import Json
from node.experiments.sweep import code
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import Trial
from node.experiments.sweep.trial import run_trial
from node.experiments.sweep.worker import failure
from node.experiments.sweep.workers import TrialUpdate
from node.figures import ACCURACY, LOSS, Diagnostic, document

UNTUNED = """\
[train]
rounds = 2
evaluate_every = 1
[privacy]
mode = "none"
batch = 30
[experiment]
nodes = 3
[sweep]
algorithms = ["xavg"]
rates = [0.1]
seeds = [1, 2]
"""
"""One algorithm at one rate; nothing is tuned."""
TINY = """\
[train]
rounds = 4
evaluate_every = 1
[privacy]
mode = "none"
batch = 30
[experiment]
nodes = 4
[sweep]
algorithms = ["xavg", "dpdl"]
seeds = [1, 2]
rates = [0.01, 0.3]
tuning_seed = 100
[sweep.settings.ring]
title = "A ring"
[sweep.settings.private]
methods = ["dpdl"]
privacy = { mode = "strict", epsilon = 8.0, delta = 1e-3, rate = 0.2, batch = 50 }
"""


class Here:
    """Plays a cell when it is waited for; `played` are the configurations."""

    slots = 1

    def __init__(self) -> None:
        self.played: list[Json] = []
        self._next: tuple[str, Json] | None = None

    def start(self, key: str, configuration: Mapping[str, object]) -> None:
        self._next = key, dict(configuration)
        self.played.append(self._next[1])

    def wait(self) -> TrialUpdate:
        assert self._next is not None
        key, configuration = self._next
        try:
            return TrialUpdate(key=key, record=run_trial(configuration))
        except Exception as error:
            return TrialUpdate(key=key, **failure(error))

    def close(self) -> None:
        pass


def keep(folder: Folder, trial: Trial, value: float, **figures: Any) -> None:
    """A finished cell, made by hand: the accuracy of both nodes at both evaluations."""
    told = {
        "rounds": [1, 2],
        "declared": {
            "metrics": document([ACCURACY, LOSS]),
            "diagnostics": document([Diagnostic("weight")]),
        },
        "metrics": {"accuracy": {"n0": [value, value], "n1": [value, value]}},
        "bytes": [5, 10],
        "seconds": [1.0, 2.0],
        "distance": [0.1, 0.1],
        "epsilon": None,
        "weights": {},
        "attackers": [],
        "summary": {},
    }
    record: dict[str, Any] = {
        "configuration": trial.configuration,
        "code": code.of(trial.configuration),
    }
    record |= {
        "cpu_seconds": 1.0,
        "wall_seconds": 1.0,
        "version": "0",
        "torch": "0",
        "machine": "m",
    }
    folder.keep(trial, {**record, "figures": told | figures})
