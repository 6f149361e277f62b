"""The sweep itself: which cell comes next, and what is shown meanwhile.

Row by row, so that what is stopped early has whole rows: a method's rates on the tuning seed, then
its seeds with the best of them. A cell is kept the moment it is finished; one that failed is
reported and left, the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from node.encoding import Json
from node.experiments.sweep import code
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import Row, Sweep, Trial
from node.experiments.sweep.results import choice, result
from node.experiments.sweep.workers import Runner, TrialUpdate
from peer import files


@dataclass(slots=True, kw_only=True)
class Outcome:
    finished: int = 0
    """Cells that were finished by this call."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cell -> one sentence."""
    left: int = 0
    """Cells that are not finished."""
    core_hours: float = 0.0
    """Of this call."""
    stopped: str = ""
    """Why it stopped before the end."""


class TrialQueue:
    """The cells of a sweep in order, as far as they are known: which come after tuning depends on
    what it finds.
    """

    def __init__(self, sweep: Sweep, folder: Folder) -> None:
        self.sweep, self.folder = sweep, folder
        self._tuning = [list(row.tuning()) for row in sweep.rows]
        self._final: dict[tuple[int, float | None], list[Trial]] = {}
        for k, row in enumerate(sweep.rows):  # also shows mistakes before anything runs
            self._finals(k, row, row.rates[0])

    def known(self) -> Iterator[Trial]:
        """Cells that can be said by now, finished or not."""
        for k, row in enumerate(self.sweep.rows):
            yield from self._tuning[k]
            done = all(
                self.folder.finished(it) or it.label in self.folder.failures
                for it in self._tuning[k]
            )
            chosen = (
                choice(row, self.folder, self.sweep.section.late, partial=True) if done else None
            )
            if chosen is not None:
                yield from self._finals(k, row, chosen.lr)

    def ready(self) -> Iterator[Trial]:
        """Cells that can be run now."""
        return (
            it
            for it in self.known()
            if not self.folder.finished(it) and it.label not in self.folder.failures
        )

    def left(self) -> list[Trial]:
        """Cells that are not finished, with one of the rates standing for the one not chosen
        yet.
        """
        known = list(self.known())
        rows = {(it.setting, it.method) for it in known if not it.tuning}
        guess = [
            trial
            for k, row in enumerate(self.sweep.rows)
            if row.tuned and (row.setting, row.method) not in rows
            for trial in self._finals(k, row, row.rates[0])
        ]
        return [it for it in known if not self.folder.finished(it)] + guess

    def _finals(self, k: int, row: Row, lr: float | None) -> list[Trial]:
        if (k, lr) not in self._final:
            self._final[k, lr] = list(row.final(lr))
        return self._final[k, lr]


def run(
    sweep: Sweep,
    folder: Folder,
    runner: Runner,
    *,
    limit: int | None = None,
    budget: float | None = None,
    quiet: bool = False,
) -> Outcome:
    """Runs what is not finished.

    Args:
        limit: at most so many cells.
        budget: no cell is started after so many core-hours of this call.
    """
    folder.fail({})
    queue, outcome = TrialQueue(sweep, folder), Outcome()
    running: dict[str, Trial] = {}
    began = 0
    with ProgressView(sweep, queue, quiet=quiet) as shown:
        try:
            while True:
                for trial in list(queue.ready()) if len(running) < runner.slots else ():
                    if len(running) >= runner.slots or (limit is not None and began >= limit):
                        break
                    if budget is not None and outcome.core_hours >= budget:
                        outcome.stopped = f"the budget of {budget:g} core-hours is spent"
                        break
                    if trial.digest not in running:
                        running[trial.digest] = trial
                        runner.start(trial.digest, trial.configuration)
                        began += 1
                if not running:
                    break
                _take(runner.wait(), running, folder, outcome, shown)
        finally:
            runner.close()
    outcome.left = len(queue.left())
    if outcome.left and not outcome.stopped and limit is not None and began >= limit:
        outcome.stopped = f"--limit {limit} is reached"
    return outcome


def _take(
    update: TrialUpdate,
    running: dict[str, Trial],
    folder: Folder,
    outcome: Outcome,
    shown: ProgressView,
) -> None:
    trial = running[update.key]
    if update.share is not None:
        shown.moved(trial, update.share)
        return
    del running[update.key]
    error = (
        update.error
        if update.record is None
        else ""
        if folder.any_code
        else _other_code(trial, update.record)
    )
    if update.record is None or error:
        outcome.failed[trial.label] = error
        folder.fail(outcome.failed)
        shown.failed(trial, error, _traced(folder.path, update))
        return
    folder.keep(trial, dict(update.record))
    outcome.finished += 1
    outcome.core_hours += update.record["cpu_seconds"] / 3600
    shown.finished(trial, update.record)


def _other_code(trial: Trial, record: Json) -> str:
    """A sentence if the cell was run by code that is not this process's: it would never count as
    finished.
    """
    here = code.of(trial.configuration)
    if record["code"] == here:
        return ""
    return (
        f"It was run by other code ({record['code']}, here {here}): install the same "
        "everywhere, and start again."
    )


def _traced(folder: Path, update: TrialUpdate) -> Path | None:
    if not update.trace:
        return None
    file = folder / f"bug-{update.key[:12]}.txt"
    files.atomic_write(file, update.trace.encode())
    return file


class ProgressView:
    """The progress bar, or where there is no terminal a line per cell; a context manager."""

    def __init__(self, sweep: Sweep, queue: TrialQueue, *, quiet: bool) -> None:
        self.console = Console(stderr=quiet, highlight=False, soft_wrap=True)
        self._late = sweep.section.late
        left = queue.left()
        self._total, self._done = sweep.size, sweep.size - len(left)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[cells]} cells"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task(
            sweep.name, total=sum(it.work for it in left) or 1, trials=self._count
        )
        self._share: dict[str, float] = {}

    def __enter__(self) -> ProgressView:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._total}"

    def moved(self, trial: Trial, share: float) -> None:
        before = self._share.get(trial.digest, 0.0)
        self._share[trial.digest] = share
        self._bar.advance(self._task, (share - before) * trial.work)

    def finished(self, trial: Trial, record: Json) -> None:
        self.moved(trial, 1.0)
        self._done += 1
        self._bar.update(self._task, trials=self._count)
        late = result(record["figures"], self._late)
        text = "finished"
        if late is not None:
            mean, worst = late.metric.show(late.mean), late.metric.show(late.worst)
            text = f"{late.metric.label} {mean}, worst node {worst}"
        self.console.print(
            f"{self._count} {trial.label}: {text}, {record['wall_seconds']:.1f} s", markup=False
        )

    def failed(self, trial: Trial, error: str, trace: Path | None) -> None:
        self.moved(trial, 1.0)
        more = f" The traceback is in {trace}." if trace else ""
        self.console.print(f"failed: {trial.label}: {error}{more}", markup=False)
