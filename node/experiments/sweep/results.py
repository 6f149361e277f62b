"""From records to figures: a run's result, and which learning rate a method is given."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from node.encoding import Json
from node.experiments.sweep.folder import Folder, Record
from node.experiments.sweep.grid import Row
from node.figures import Metric


@dataclass(frozen=True, slots=True)
class Result:
    """The headline metric, a mean over a run's last evaluations."""

    metric: Metric
    mean: float
    """Over the nodes."""
    worst: float
    """Of the node that does worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The learning rate of a row."""

    lr: float | None
    """None: the experiment's own."""
    tried: Mapping[float, float]
    """Rate -> headline metric on held-out training data."""
    edge: bool
    """It is the lowest or highest of the grid: a better one may lie beyond."""
    metric: Metric | None = None
    """What it was chosen by."""


def metrics_of(figures: Json) -> list[Metric]:
    """The metrics that were measured, the headline first."""
    declared = (Metric(**it) for it in figures["declared"]["metrics"])
    return [metric for metric in declared if metric.name in figures["metrics"]]


def result(figures: Json, late: int) -> Result | None:
    """None: nothing was measured, or not to the end."""
    metrics = metrics_of(figures)
    if not metrics:
        return None
    headline = metrics[0]
    means = [
        statistics.fmean(values[-late:])
        for values in figures["metrics"][headline.name].values()
        if None not in values[-late:]
    ]
    return Result(headline, statistics.fmean(means), headline.worst(means)) if means else None


def choice(row: Row, folder: Folder, late: int, *, partial: bool = False) -> Choice | None:
    """The rate with the best mean on held-out training data; of equals the smallest. None: not all
    were tried yet.

    partial: rates that failed are left out.
    """
    if not row.tuned:
        return Choice(lr=row.rates[0], tried={}, edge=False)
    tried: dict[float, float] = {}
    metric: Metric | None = None
    for trial in row.tuning():
        record = folder.finished(trial)
        if record is None and not (partial and trial.label in folder.failures):
            return None
        late_result = result(record["figures"], late) if record else None
        if late_result is not None and trial.lr is not None:
            metric = late_result.metric
            tried[trial.lr] = late_result.mean
    if metric is None:
        return None
    best_value = metric.best(tried.values())
    best = min(lr for lr, value in tried.items() if value == best_value)
    rates = [rate for rate in row.rates if rate is not None]
    return Choice(lr=best, tried=tried, edge=best in (min(rates), max(rates)), metric=metric)


def finals(row: Row, folder: Folder, lr: float | None) -> list[Record | None]:
    """A record per seed; None where the cell was not run."""
    return [folder.finished(trial) for trial in row.final(lr)]


def rounds_to(figures: Json, loss: float) -> int | None:
    """After how many rounds the nodes' mean test loss was first this low, to the next evaluation;
    None: never.
    """
    by_node = figures["metrics"].get("loss", {}).values()
    for t, values in zip(figures["rounds"], zip(*by_node, strict=True), strict=False):
        if None not in values and statistics.fmean(values) <= loss:
            return int(t)
    return None
