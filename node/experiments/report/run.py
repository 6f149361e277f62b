"""The page of one run: what it came to, how it went at each node, and what was noted."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from node.config import RunConfig, load
from node.encoding import Json
from node.experiments.report import page, plots
from node.experiments.report.tables import Grid
from node.figures import Metric
from node.observability.sentences import Sentences
from node.records import journal, summary
from node.records.summary import Summary
from peer.errors import ConfigurationError, DataError

Events: TypeAlias = Sequence[Json]
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """What lies in the folder of a run."""

    folder: Path
    summary: Summary
    config: RunConfig
    text: str
    """run.toml as it stands."""
    journals: Mapping[str, Events]


def read(folder: Path) -> Run:
    """A folder of `up` or `simulate`, or a daemon's own.

    Raises:
        DataError, ConfigurationError: it lacks a summary, run.toml, or journals.
    """
    result = summary.read(folder / "summary.json")
    places = (folder / "run.toml", folder.parent / "run.toml")
    settings = next((place for place in places if place.exists()), None)
    if settings is None:
        raise DataError(f"There is no run.toml in {folder} or above it.")
    files = {it.parent.name: it for it in sorted(folder.glob(f"nodes/*/{JOURNAL}"))}
    if not files and (folder / JOURNAL).exists():
        files = {next(iter(result.params_digest), folder.name): folder / JOURNAL}
    return Run(
        folder,
        result,
        load(RunConfig, [settings], environ={}),
        settings.read_text(encoding="utf-8"),
        {name: journal.read(file) for name, file in files.items()},
    )


def document(run: Run) -> str:
    """One HTML file with nothing outside of it; without plots where matplotlib is not installed."""
    return page.framed(run.config.run.name, "".join(_parts(run)))


def _parts(run: Run) -> Iterator[str]:
    for line in summary.heading(run.summary).splitlines():
        yield f"<p>{page.escape(line)}</p>\n"
    yield page.table(_nodes(run))
    if promise := summary.promise(run.summary.privacy):
        yield f'<p class="soft">{page.escape(promise)}</p>\n'
    yield '<div class="figures">\n'
    try:
        yield from map(page.drawn, _plots(run))
    except ConfigurationError as error:
        yield f'<p class="soft">{page.escape(str(error))}</p>\n'
    yield "</div>\n"
    for name, events in run.journals.items():
        lines = "\n".join(map(page.escape, _said(run, name, events)))
        yield _folded(f"What {name} noted", lines)
    yield _folded("run.toml", html.escape(run.text))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{page.escape(title)}</summary><pre>{text}</pre></details>\n"


def _nodes(run: Run) -> Grid:
    """A row for each node, and one for the average of their models."""
    result = run.summary
    figures = result.task_metrics
    metrics = [_metric(result, name) for name in figures]

    def cells(
        of: Mapping[str, float | None], epsilon: float | None, rounds: str
    ) -> tuple[str, ...]:
        shown = "–" if epsilon is None else f"{epsilon:.2f}"
        return (*(metric.show(of.get(metric.name)) for metric in metrics), shown, rounds)

    rows = [
        (
            name,
            *cells(
                {metric: each.per_node.get(name) for metric, each in figures.items()},
                result.privacy.epsilon.per_node.get(name),
                str(result.rounds_run.get(name, "–")),
            ),
        )
        for name in sorted(result.params_digest)
    ]
    if average := result.averaged_model:
        rows.append(("average of the models", *cells(average, None, "")))
    return Grid(
        title=f"{result.algorithm}, {result.nodes} nodes",
        head=("node", *(metric.label for metric in metrics), "ε_total", "rounds"),
        rows=tuple(rows),
    )


def _metric(result: Summary, name: str) -> Metric:
    figure = result.task_metrics[name]
    return Metric(name, unit=figure.unit, higher_is_better=figure.higher_is_better)


def _plots(run: Run) -> Iterator[plots.Plot]:
    headline = run.summary.headline
    if headline:
        metric = _metric(run.summary, headline)
        percent = ", %" if metric.unit == "ratio" else ""
        curves = _curves(run, "test", lambda event: _scaled(event["metrics"].get(headline), metric))
        if curves:
            yield plots.of_nodes(curves, "rounds", f"{headline}{percent}")
    if spent := _curves(run, "epsilon", lambda event: event["total"]):
        yield plots.of_nodes(spent, "rounds", "privacy spent, ε_total (RDP)")


def _scaled(value: float | None, metric: Metric) -> float | None:
    return None if value is None else value * metric.scale


def _curves(
    run: Run, kind: str, value: Callable[[Json], float | None]
) -> dict[str, tuple[list[float], list[float]]]:
    """Node -> rounds, and a figure of the events of this kind, where it is known."""
    curves = {}
    for name, events in run.journals.items():
        points = [(it["round"] + 1, value(it)) for it in events if it["event"] == kind]
        known = [(t, figure) for t, figure in points if figure is not None]
        if known:
            curves[name] = ([float(t) for t, _ in known], [figure for _, figure in known])
    return curves


def _said(run: Run, name: str, events: Events) -> Iterator[str]:
    """The node's lines, as `peerpoise run` said them, with their times."""
    home = run.folder / "nodes" / name
    where = home if home.exists() else run.folder
    sentences = Sentences(name, run.config, version=run.summary.version, folder=where)
    for fields in events:
        now = datetime.fromisoformat(fields["time"])
        if line := sentences.of(fields["event"], fields, now):
            yield f"{now:%Y-%m-%d %H:%M:%S}  {line}"
