"""What a sweep will take: which cells there are, which are left, and core-hours as measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import Row, Sweep
from node.experiments.sweep.loop import TrialQueue

MEASURED_ROUNDS = 10
"""Rounds that --measure runs of one cell of each row."""


@dataclass(frozen=True, slots=True)
class RowEstimate:
    """Of a row."""

    row: Row
    trials: int
    left: int
    seconds: float | None
    """That a cell takes; None: not measured."""


@dataclass(frozen=True, slots=True)
class Estimate:
    sweep: str
    rows: tuple[RowEstimate, ...]

    @property
    def trials(self) -> int:
        return sum(it.trials for it in self.rows)

    @property
    def left(self) -> int:
        return sum(it.left for it in self.rows)

    @property
    def core_hours(self) -> float:
        """Of all cells whose rows were measured."""
        return sum(it.trials * (it.seconds or 0.0) for it in self.rows) / 3600

    @property
    def core_hours_left(self) -> float:
        return sum(it.left * (it.seconds or 0.0) for it in self.rows) / 3600

    @property
    def unmeasured(self) -> int:
        """Cells left that are in no figure of hours."""
        return sum(it.left for it in self.rows if it.seconds is None)


def estimated(sweep: Sweep, folder: Folder) -> Estimate:
    queue = TrialQueue(sweep, folder)
    left = queue.left()
    rows = []
    for row in sweep.rows:
        trials = [*row.tuning(), *row.final(row.rates[0])]
        mine = {it.digest for it in left if (it.setting, it.method) == (row.setting, row.method)}
        if not row.tuned:  # several rows of a method, a rate each
            mine &= {it.digest for it in trials}
        rows.append(RowEstimate(row, len(trials), len(mine), seconds(row, folder)))
    return Estimate(sweep.name, tuple(rows))


def seconds(row: Row, folder: Folder) -> float | None:
    """What a cell of this row takes: as cells of it took, or as it was measured; None: unknown."""
    for trial in (*row.tuning(), *row.final(row.rates[0])):
        if record := folder.finished(trial):
            return float(record["cpu_seconds"])
    return folder.costs.get(f"{row.setting}/{row.method}")


def measure(sweep: Sweep, folder: Folder, *, quiet: bool = False) -> None:
    """Runs ten rounds of one cell of each row that has no figure yet, here, and keeps what a whole
    cell would take.
    """
    from node.experiments.sweep.trial import run_trial

    console = Console(stderr=quiet, highlight=False, soft_wrap=True)
    TrialQueue(sweep, folder)  # mistakes in later rows first
    for row in sweep.rows:
        if seconds(row, folder) is not None:
            continue
        trial = row.trial(row.rates[0], row.seeds[0], tuning=False)
        rounds, train = trial.config.train.rounds, trial.configuration["train"]
        short = min(rounds, MEASURED_ROUNDS)
        record = run_trial({**trial.configuration, "train": {**train, "rounds": short}})
        training = record["figures"]["summary"]["wall_seconds"] / record["wall_seconds"]
        cell_seconds = record["cpu_seconds"] * (1 - training + training * rounds / short)
        folder.price(row, cell_seconds)
        console.print(f"{row.setting}, {row.label}: {cell_seconds:.0f} s a cell", markup=False)


def document(estimate: Estimate, sweep: Sweep, folder: Folder) -> dict[str, object]:
    """As JSON, cell by cell."""
    queue = TrialQueue(sweep, folder)
    return {
        "sweep": estimate.sweep,
        "cells": estimate.trials,
        "left": estimate.left,
        "core_hours": estimate.core_hours,
        "core_hours_left": estimate.core_hours_left,
        "unmeasured": estimate.unmeasured,
        "rows": [
            {
                "setting": it.row.setting,
                "method": it.row.label,
                "rates": list(it.row.rates),
                "cells": it.trials,
                "left": it.left,
                "seconds_a_cell": it.seconds,
            }
            for it in estimate.rows
        ],
        "left_now": [it.label for it in queue.left()],
    }


def lines(estimate: Estimate) -> Iterator[str]:
    """In lines."""
    setting = None
    for estimated in estimate.rows:
        row = estimated.row
        if row.setting != setting:
            setting = row.setting
            yield setting
        rates = ", ".join("its own" if lr is None else f"{lr:g}" for lr in row.rates)
        tuned = f"lr {rates} on seed {row.tuning_seed}, then " if row.tuned else f"lr {rates}, "
        each = "" if estimated.seconds is None else f", {estimated.seconds:.0f} s each"
        yield (
            f"  {row.method}: {tuned}seeds {', '.join(map(str, row.seeds))}: {estimated.trials} "
            f"cells, {estimated.left} left{each}"
        )
    unknown = (
        f"; {estimate.unmeasured} cells are unmeasured (--measure)" if estimate.unmeasured else ""
    )
    hours = f"about {estimate.core_hours_left:.2f} of {estimate.core_hours:.2f} core-hours"
    yield f"{estimate.trials} cells, {estimate.left} left: {hours}{unknown}"
