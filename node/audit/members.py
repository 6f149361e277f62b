"""The audit `membership`: who can tell whether a record is among another node's
(`node.audit.membership`).

It calls no run broken: its intervals take records for independent that share the noise of a run,
and its thresholds are from the same runs, so an honest run may lie above its bound. Canaries can
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from node.audit import Finding, Options, Unfit
from node.audit.membership import Membership, infer
from node.config import TaskSection
from node.experiments.report.tables import Grid
from node.experiments.resolve import ResolvedRun
from peer.errors import ConfigurationError

RUNS, FEW = 32, 6
RECORDS = 100


def audit(resolved: ResolvedRun, options: Options) -> Sequence[Finding]:
    """Raises:
    Unfit: the data are not divided here, or the algorithm sends no whole models.
    """
    runs = FEW if options.quick else RUNS
    options.say(f"membership: the experiment is run {runs} times, with records drawn anew")
    try:
        results = infer(
            resolved, runs=runs, records=RECORDS, seed=options.seed, progress=_telling(options)
        )
    except ConfigurationError as error:
        raise Unfit(str(error)) from None
    task = resolved.run.task
    document = {
        "membership": [asdict(each) for each in results],
        "adjacency": task.adjacency,
    }
    return [Finding(table=_grid(results, task), document=document)]


def _telling(options: Options) -> Callable[[int, int], None]:
    """Says every fourth run."""

    def progress(done: int, runs: int) -> None:
        if done % 4 == 0:
            options.say(f"membership: run {done} of {runs} is over")

    return progress


def _grid(results: Sequence[Membership], task: TaskSection) -> Grid:
    rows = tuple(
        (
            each.watcher,
            f"{each.auc:.3f}",
            f"{rate.false_positives:.1%}",
            f"{rate.true_positives:.1%}",
            f"{rate.low:.1%} to {rate.high:.1%}",
            f"{rate.bound:.1%}",
        )
        for each in results
        for rate in each.rates
    )
    first = results[0]
    what = f"values of {task.unit} with all their rows" if task.unit else "records"
    return Grid(
        title=f"Membership, mode {first.mode}: {'who' if task.unit else 'which record'} is there?",
        head=("who watches", "AUC", "FPR", "TPR", "95 %", "no attacker more than"),
        rows=rows,
        notes=(
            f"LiRA, {first.runs} runs of the experiment, each with or without each of "
            f"{first.records} {what} of one node ({task.adjacency}); the watcher knows all else. "
            "AUC 0.5 is chance. Intervals take records for independent, which they are not quite: "
            "no run is called broken by them",
        ),
    )
