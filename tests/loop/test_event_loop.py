"""The event loop stays free while a model trains and while bulk goes over the wire: real daemons,
one of them watched.

CPU time of callbacks is measured on asyncio, whose handles can be wrapped; heartbeats on the
daemon's default loop.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest

from kit.monitored_run import Watched, config, watch
from node.config import ExperimentConfig

CALLBACK_SECONDS = 0.05
BEAT_P99_SECONDS = 0.05
"""On a machine of the daemons' own. Where others take a share of its processors, as much longer as
less is left.
"""
ALLOWED = {
    "io.FileIO.write < journal.py:write": "one line of less than a kilobyte to the page cache, never synced",
}
"""Calls on the loop's thread that could wait, and why they may stay."""

TRAINING = config(
    nodes=3,
    train={"rounds": 6, "evaluate_every": 2, "checkpoint_every": 2},
    task={"model": "cnn", "image_size": 28},
)
"""The papers' CNN, strict DPDL."""
BULK = config(
    nodes=2,
    task={"model": "mlp", "image_size": 28, "hidden": 16_000},
    train={"rounds": 16, "evaluate_every": 0, "checkpoint_every": 100},
    algorithm={"name": "d-psgd", "lr": 0.01},
    privacy={"mode": "none", "batch": 2, "rate": 0.01},
)
"""51 MB each way every round, and little else."""
SHORT = config(nodes=3, train={"rounds": 12}, task={"model": "softmax"})

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watch(tmp_path_factory.mktemp("training"), TRAINING, "asyncio")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A daemon with the faults of `watched.py` on its loop."""
    return watch(
        tmp_path_factory.mktemp("spoiled"), SHORT, "asyncio", "burn", "nap", "save", "delay"
    )


def test_no_callback_takes_long(training: Watched) -> None:
    assert training.rounds == TRAINING.train.rounds
    seconds, what = training.slowest[0]
    assert seconds < CALLBACK_SECONDS, what


def test_a_long_callback_is_found(spoiled: Watched) -> None:
    assert any(seconds >= 0.1 and "again(" in what for seconds, what in spoiled.slowest)


def test_nothing_blocks_the_loop(training: Watched) -> None:
    assert training.asked > 0, "status was not asked for"
    assert not blocking(training)


def test_what_is_allowed_happens(training: Watched) -> None:
    """An entry that nobody needs any more hides the next mistake."""
    for allowed in ALLOWED:
        assert any(call.startswith(allowed) for call in training.blocking)


def test_blocking_calls_are_found(spoiled: Watched) -> None:
    found = " ".join(blocking(spoiled))
    assert "time.sleep < monitored_daemon.py:nap" in found
    assert "monitored_daemon.py:save" in found


def blocking(watched: Watched) -> dict[str, int]:
    return {call: n for call, n in watched.blocking.items() if not call.startswith(tuple(ALLOWED))}


@pytest.mark.long
def test_heartbeat_while_training(tmp_path: Path) -> None:
    best_of_three(tmp_path, TRAINING, moving=False)


@pytest.mark.long
def test_heartbeat_during_bulk_transfers(tmp_path: Path) -> None:
    best_of_three(tmp_path, BULK, moving=True)


def test_late_heartbeats_are_found(spoiled: Watched) -> None:
    assert p99(spoiled.heartbeats()) > BEAT_P99_SECONDS


def best_of_three(folder: Path, run: ExperimentConfig, *, moving: bool) -> None:
    found = []
    for attempt in ("first", "second", "third"):
        watched = watch(folder / attempt, run, "auto")
        late, bound = (
            p99(watched.heartbeats(moving=moving)),
            BEAT_P99_SECONDS / max(0.1, 1 - watched.others),
        )
        found.append(
            f"{1000 * late:.0f} ms of {1000 * bound:.0f} ({watched.others:.0%} of the processors "
            "for others)"
        )
        if late < bound:
            print(f"p99 of heartbeats: {found[-1]}")
            return
    pytest.fail(f"p99 of heartbeats: {', '.join(found)}")


def p99(seconds: list[float]) -> float:
    assert len(seconds) >= 20, f"only {len(seconds)} heartbeats"
    return sorted(seconds)[ceil(0.99 * len(seconds)) - 1]
