"""From records to figures: a run's result, and which learning rate a method is given."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node.experiments.sweep.folder import Folder, Record
from node.experiments.sweep.grid import Row


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracies are means over a run's last evaluations, 0 … 1."""

    mean: float
    """Over the nodes."""
    worst: float
    """Of the node with the lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The learning rate of a row."""

    lr: float | None
    """None: the experiment's own."""
    tried: Mapping[float, float]
    """Rate -> accuracy on held-out training data."""
    edge: bool
    """It is the lowest or highest of the grid: a better one may lie beyond."""


def result(figures: Mapping[str, Any], late: int) -> Result | None:
    """None: the task has no accuracy."""
    each = [
        statistics.fmean(values[-late:])
        for values in figures["accuracy"].values()
        if None not in values[-late:]
    ]
    return Result(statistics.fmean(each), min(each)) if each else None


def choice(row: Row, folder: Folder, late: int, *, partial: bool = False) -> Choice | None:
    """The rate with the best mean on held-out training data; of equals the smallest. None: not all
    were tried yet.

    partial: rates that failed are left out.
    """
    if not row.tuned:
        return Choice(lr=row.rates[0], tried={}, edge=False)
    tried: dict[float, float] = {}
    for trial in row.tuning():
        record = folder.found(trial)
        if record is None and not (partial and trial.label in folder.failures):
            return None
        found = result(record["figures"], late) if record else None
        if found is not None and trial.lr is not None:
            tried[trial.lr] = found.mean
    if not tried:
        return None
    best = max(sorted(tried), key=lambda lr: tried[lr])
    rates = [rate for rate in row.rates if rate is not None]
    return Choice(lr=best, tried=tried, edge=best in (min(rates), max(rates)))


def finals(row: Row, folder: Folder, lr: float | None) -> list[Record | None]:
    """A record per seed; None where the cell was not run."""
    return [folder.found(trial) for trial in row.final(lr)]


def rounds_to(figures: Mapping[str, Any], loss: float) -> int | None:
    """After how many rounds the nodes' mean test loss was first this low, to the next evaluation;
    None: never.
    """
    by_node = figures["metrics"].get("loss", {}).values()
    for t, values in zip(figures["rounds"], zip(*by_node, strict=True), strict=False):
        if None not in values and statistics.fmean(values) <= loss:
            return int(t)
    return None
