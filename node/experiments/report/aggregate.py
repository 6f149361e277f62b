"""Rows and their figures, from the records of a folder."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.config import ExperimentConfig
from node.encoding import Json
from node.experiments.sweep import code
from node.experiments.sweep.folder import Folder, Record, sweep_of
from node.experiments.sweep.grid import Row, Sweep
from node.experiments.sweep.results import (
    Choice,
    Result,
    choice,
    finals,
    metrics_of,
    result,
    rounds_to,
)
from node.figures import ACCURACY, Metric
from node.records.summary import Privacy, Summary, conditions


@dataclass(frozen=True, slots=True)
class Spread:
    """Over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None: one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None: there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A method in a setting."""

    row: Row
    choice: Choice | None
    records: tuple[Record, ...]
    """Of the seeds that were run."""
    failures: tuple[str, ...]
    """What went wrong in this row, a sentence each."""
    late: int
    target_loss: float | None

    @property
    def method(self) -> str:
        return self.row.label

    @property
    def lr(self) -> float | None:
        """The chosen rate, or the experiment's own; None: not chosen yet, or the algorithm's
        default.
        """
        if self.choice is None or self.choice.lr is not None:
            return self.choice.lr if self.choice else None
        own = self.row.values.get("algorithm", {}).get("lr")
        return float(own) if own is not None else None

    @property
    def state(self) -> str:
        """finished, n of m seeds, failed, or not run."""
        done, seeds = len(self.records), len(self.row.seeds)
        if done == seeds:
            return "finished"
        if done:
            return f"{done} of {seeds} seeds"
        return "failed" if self.failures else "not run"

    @property
    def figures(self) -> list[Json]:
        return [record["figures"] for record in self.records]

    @property
    def summaries(self) -> list[Summary]:
        known = Summary.model_fields
        return [
            Summary(**{k: v for k, v in it["summary"].items() if k in known}) for it in self.figures
        ]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that were measured, the headline first."""
        return metrics_of(self.figures[0]) if self.records else []

    @property
    def results(self) -> list[Result]:
        """The headline of every run that has one."""
        results = (result(figures, self.late) for figures in self.figures)
        return [it for it in results if it is not None]

    @property
    def mean(self) -> Spread | None:
        """The headline, mean over nodes and late evaluations."""
        return Spread.of([it.mean for it in self.results])

    @property
    def worst(self) -> Spread | None:
        """Of the worst node."""
        return Spread.of([it.worst for it in self.results])

    def metric(self, name: str) -> Spread | None:
        """A test metric, mean over nodes and late evaluations; None: the task has none of that
        name.
        """
        means = []
        for figures in self.figures:
            nodes = figures["metrics"].get(name, {}).values()
            late = [it for values in nodes for it in values[-self.late :] if it is not None]
            means += [statistics.fmean(late)] if late else []
        return Spread.of(means)

    def averaged(self, name: str) -> Spread | None:
        """A test metric of the averaged model at the end."""
        models = [
            figures["summary"].get("algorithm_metrics", {}).get("averaged_model", {})
            for figures in self.figures
        ]
        return Spread.of([it[name] for it in models if it.get(name) is not None])

    @property
    def bytes(self) -> float | None:
        """Sent by a node in a run, mean."""
        return statistics.fmean(it["bytes"][-1] for it in self.figures) if self.records else None

    @property
    def seconds(self) -> float | None:
        """Of training, mean."""
        return statistics.fmean(it["seconds"][-1] for it in self.figures) if self.records else None

    @property
    def rounds_to(self) -> Spread | None:
        """Rounds to the target loss; None: not all seeds reached it."""
        if self.target_loss is None:
            return None
        rounds = [rounds_to(figures, self.target_loss) for figures in self.figures]
        return None if None in rounds else Spread.of([float(t) for t in rounds if t is not None])

    @property
    def privacy(self) -> Privacy | None:
        """What is claimed of all its runs: the largest ε."""
        claims = [it.privacy for it in self.summaries]
        return (
            max(claims, key=lambda claim: (claim.epsilon.total is None, claim.epsilon.total or 0.0))
            if claims
            else None
        )

    @property
    def conditions(self) -> str | None:
        """What stands beside every ε of this row."""
        return (
            None
            if self.privacy is None or self.privacy.mode == "none"
            else conditions(self.privacy)
        )

    @property
    def nominal(self) -> float | None:
        """privacy.epsilon of the configuration."""
        return self.records[0]["configuration"]["privacy"]["epsilon"] if self.records else None

    @property
    def accounted(self) -> float | None:
        """Mode paper: ε_total of the noised answers alone."""
        totals = [it["accounted"] for it in self.figures if it.get("accounted") is not None]
        return max(totals, default=None)

    @property
    def attackers(self) -> list[str]:
        return sorted({name for figures in self.figures for name in figures["attackers"]})

    def weighed(self, *, attackers: bool) -> Spread | None:
        """What honest nodes give a neighbor that attacks, or one that doesn't: its weight in
        multiples of w_ij, mean over the whole run. None: the algorithm weighs nobody, or there is
        no such neighbor."""
        return Spread.of(
            [
                weight
                for record in self.records
                if (weight := _weight(record, attackers=attackers)) is not None
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A setting."""

    name: str
    title: str
    lines: tuple[Line, ...]

    @property
    def headline(self) -> Metric:
        """What its runs are known by."""
        return next((line.metrics[0] for line in self.lines if line.metrics), ACCURACY)

    @property
    def about(self) -> str:
        """What its runs have in common, in a sentence; empty: none was run."""
        summaries = [it for line in self.lines for it in line.summaries]
        if not summaries:
            return ""
        first = next(line for line in self.lines if line.records).records[0]["configuration"]
        sizes = {it.nodes for it in summaries if it.algorithm != "centralized"}
        many = ", ".join(map(str, sorted(sizes))) or "1"
        rounds = ", ".join(str(n) for n in sorted({it.rounds for it in summaries}))
        divided = first["experiment"]["partition"]
        if divided.startswith("dirichlet"):
            divided += f" {first['experiment']['alpha']:g}"
        rule = "" if first["mix"]["rule"] == "mean" else f", mixing by {first['mix']['rule']}"
        sentence = (
            f"{summaries[0].dataset}, {many} nodes, {first['topology']['kind']}, {divided}, "
            f"{rounds} rounds, "
        )
        sentence += f"model {first['task']['model']}{rule}"
        liars = sorted({name for line in self.lines for name in line.attackers})
        return sentence + (
            f"; attackers: {', '.join(liars)} ({self.headline.labels} are the honest nodes')"
            if liars
            else ""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """Everything that a report shows of a sweep."""

    sweep: Sweep
    parts: tuple[Part, ...]
    records: tuple[Record, ...]
    trials: int
    """Of the sweep."""
    finished: int
    unread: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def methods(self) -> list[str]:
        """In the file's order: a method has the same color everywhere."""
        return list(dict.fromkeys(line.method for part in self.parts for line in part.lines))


def find(path: Path) -> SweepReport:
    """Reads a folder; cells of any version of the code are shown, with a note if versions differ.

    Raises:
        DataError, ConfigurationError: it holds no sweep, or something of it is damaged.
    """
    return collect(sweep_of(path), Folder(path, any_code=True))


def collect(sweep: Sweep, folder: Folder) -> SweepReport:
    parts: list[Part] = []
    finished = 0
    shown: list[Record] = []
    for name, title in sweep.titles.items():
        lines = [_line(sweep, row, folder) for row in sweep.rows if row.setting == name]
        parts.append(Part(name=name, title=title, lines=tuple(lines)))
    for row in sweep.rows:
        tuned = [folder.finished(trial) for trial in row.tuning()]
        shown += [record for record in tuned if record]
    shown += [record for part in parts for line in part.lines for record in line.records]
    finished = len(shown)
    return SweepReport(
        sweep=sweep,
        parts=tuple(parts),
        records=tuple(shown),
        trials=sweep.size,
        finished=finished,
        unread=folder.unread,
        notes=tuple(_notes(sweep, shown, folder, parts[0].headline)),
    )


def _line(sweep: Sweep, row: Row, folder: Folder) -> Line:
    late = sweep.section.late
    chosen = choice(row, folder, late, partial=True)
    records = [it for it in finals(row, folder, chosen.lr) if it] if chosen else []
    labels = [it.label for it in (*row.tuning(), *(row.final(chosen.lr) if chosen else ()))]
    failures = tuple(
        f"{label}: {folder.failures[label]}" for label in labels if label in folder.failures
    )
    return Line(
        row=row,
        choice=chosen,
        records=tuple(records),
        failures=failures,
        late=late,
        target_loss=sweep.section.target_loss,
    )


def _weight(record: Record, *, attackers: bool) -> float | None:
    """Of one run: mean of π_ij/w_ij over honest i, their neighbors j of that kind, and time."""
    config, liars = ExperimentConfig(**record["configuration"]), set(record["figures"]["attackers"])
    weights = record["figures"]["weights"].get("weight", {})
    ratios = [
        value / neighborhood.weight[peer]
        for node, neighborhood in (
            config.neighborhoods(config.experiment.names) if weights else {}
        ).items()
        if node not in liars
        for peer, values in weights.get(node, {}).items()
        if (peer in liars) is attackers
        for value in values
        if value is not None
    ]
    return statistics.fmean(ratios) if ratios else None


def _notes(
    sweep: Sweep, records: Sequence[Record], folder: Folder, headline: Metric
) -> Iterator[str]:
    if sweep.source["quick"]:
        yield (
            "This was made with --quick: ten rounds, two rates, one seed. It shows that "
            "everything runs, no more."
        )
    if sweep.section.tuning_seed is not None:
        yield (
            f"Each method's learning rate was chosen on seed {sweep.section.tuning_seed} by the "
            f"{headline.label} on held-out training data. On private data such tuning would cost a "
            "budget of its own, which is in no ε here."
        )
    if others := sum(record["code"] != code.of(record["configuration"]) for record in records):
        yield (
            f"{others} of {len(records)} cells were made by other versions of the code than "
            "this one."
        )
    by_kind: dict[tuple[str, str], set[str]] = {}
    for record in records:
        kind = record["configuration"]["algorithm"]["name"], record["configuration"]["task"]["name"]
        by_kind.setdefault(kind, set()).add(record["code"])
    if mixed := sorted({name for (name, _), codes in by_kind.items() if len(codes) > 1}):
        yield f"Runs of {', '.join(mixed)} were made by different versions of the code."
    if folder.unread:
        yield (
            f"{folder.unread} files in {folder.path.name}/cells are of another version and "
            "were left out."
        )
