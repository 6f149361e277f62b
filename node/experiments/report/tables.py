"""A sweep's report as grids of text: one for terminals, Markdown and the page."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.experiments.report.aggregate import Line, Part, SweepReport
from node.experiments.report.spreads import figure, number, shown, spread
from node.experiments.report.verdict import Cost, costs, verdict
from node.figures import Metric
from node.records.summary import LINK

if TYPE_CHECKING:
    from rich.table import Table

NOT_RUN = "not run"
EDGE = "†"
EDGE_NOTE = f"{EDGE} the lowest or highest rate that was tried: a better one may lie beyond"
LATE_NOTE = (
    "{labels}, mean ± standard deviation over seeds, of the last {late} evaluations of a run"
)
PAPER = (
    "the first figure is the papers' nominal ε, the second ε_total of the noised answers alone as "
    "an accountant has it (PLD); the own gradient, sent on without noise of its own, is in neither"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of text; the first column heads the rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def grids(report: SweepReport) -> list[Grid]:
    """An overview where there are several settings, then a table for each."""
    first = overview(report) if len(report.parts) > 1 else None
    speed = speed_up(report) if len(report.parts) > 1 and report.sweep.section.target_loss else None
    settings = [setting(part) for part in report.parts]
    return [it for it in (first, speed, *settings, cost_of_privacy(report)) if it]


def cost_of_privacy(report: SweepReport) -> Grid | None:
    """The same methods with and without noise; None: there are none."""
    rows = tuple(
        (
            cost.noised.method,
            cost.part.title,
            shown(cost.plain.mean, cost.part.headline),
            shown(cost.noised.mean, cost.part.headline),
            _points(cost),
        )
        for cost in costs(report)
    )
    head = ("method", "setting", "without noise", "with noise", "cost")
    return Grid(title="What privacy costs", head=head, rows=rows) if rows else None


def overview(report: SweepReport) -> Grid:
    """Methods × settings: mean of the nodes, and the worst one."""
    lines = {(part.name, line.method): line for part in report.parts for line in part.lines}

    def cell(name: str, method: str) -> str:
        line = lines.get((name, method))
        if line is None or line.mean is None or line.worst is None:
            return NOT_RUN if line is None else line.state
        partial = "" if line.state == "finished" else f" ({line.state})"
        metric = line.metrics[0]
        return f"{shown(line.mean, metric)} / {number(line.worst.mean, metric)}{partial}"

    rows = [
        (method, *(cell(part.name, method) for part in report.parts)) for method in report.methods
    ]
    late_note = _late_note(report.parts[0].headline, report.sweep.section.late)
    notes = [f"{late_note}; after the stroke the worst node."]
    return Grid(
        title="All settings",
        head=("method", *(part.title for part in report.parts)),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def speed_up(report: SweepReport) -> Grid:
    """Rounds to the target loss, and how many times fewer than in the first setting."""
    base = {line.method: line.rounds_to for line in report.parts[0].lines}

    def cell(part: Part, method: str) -> str:
        line = next((it for it in part.lines if it.method == method), None)
        if line is None or not line.records:
            return NOT_RUN if line is None else line.state
        if line.rounds_to is None:
            return "not reached"
        first = base.get(method)
        times = "" if first is None else f" (÷ {first.mean / line.rounds_to.mean:.2f})"
        return f"{spread(line.rounds_to, '{:.0f}')}{times}"

    rows = [(method, *(cell(part, method) for part in report.parts)) for method in report.methods]
    return Grid(
        title=f"Rounds to a test loss of {report.sweep.section.target_loss:g}",
        head=("method", *(part.title for part in report.parts)),
        rows=tuple(rows),
        notes=(
            "Mean over nodes, to the next evaluation; ÷: fewer than in "
            f"{report.parts[0].title}, so many times.",
        ),
    )


Column = tuple[str, Callable[[Line], str]]


def setting(part: Part) -> Grid:
    """The lines of a setting. Every ε has a letter, and under the table what it is an ε of."""
    budgets = _Budgets()
    private = any(line.conditions for line in part.lines)
    columns: list[Column] = [
        ("method", lambda line: line.method),
        ("lr", _rate),
        (
            "mean of the nodes",
            lambda line: shown(line.mean, part.headline) if line.records else line.state,
        ),
        ("worst node", lambda line: shown(line.worst, part.headline) if line.records else ""),
        *_metric_columns(part),
    ]
    if any(line.target_loss for line in part.lines):
        columns.append(("rounds to loss", _reached))
    columns += [("ε_total", budgets.total), ("ε_link", budgets.link)] if private else []
    if any(line.weighed(attackers=True) for line in part.lines):
        columns.append(("weight of attackers / others, in w", _weights))
    columns += [
        ("MB sent per node", lambda line: "" if line.bytes is None else _megabytes(line.bytes)),
        ("seconds", _seconds),
        ("seeds", lambda line: f"{len(line.records)}/{len(line.row.seeds)}"),
    ]
    rows = tuple(tuple(show(line) for _, show in columns) for line in part.lines)
    return Grid(
        title=part.title,
        head=tuple(name for name, _ in columns),
        rows=rows,
        notes=tuple(_notes(part, budgets.letters, private)),
    )


class _Budgets:
    """The cells of every ε, each with the letter of its conditions."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}
        """Conditions -> letter, as they come."""

    def total(self, line: Line) -> str:
        if line.privacy is None:
            return ""
        if line.privacy.mode == "none":
            return "–"
        if line.privacy.mode == "paper":
            nominal, answers = (figure(it, "{:.2f}") for it in (line.nominal, line.accounted))
            return f"no guarantee: {nominal} / {answers} ({self._letter(line)})"
        return f"{figure(line.privacy.epsilon.total, '{:.2f}')} ({self._letter(line)})"

    def link(self, line: Line) -> str:
        if line.privacy is None:
            return ""
        known = line.privacy.epsilon.link
        return "–" if known is None else f"{known:.2f} ({self._letter(line)}, one link)"

    def _letter(self, line: Line) -> str:
        assert line.conditions
        conditions = line.conditions + (
            f"; {PAPER}" if line.privacy and line.privacy.mode == "paper" else ""
        )
        return self.letters.setdefault(
            conditions, "abcdefghijklmnopqrstuvwxyz"[len(self.letters) % 26]
        )


def _rate(line: Line) -> str:
    """Marked if it is at the edge of what was tried."""
    return figure(line.lr, "{:g}") + (f" {EDGE}" if line.choice and line.choice.edge else "")


def _points(cost: Cost) -> str:
    assert cost.plain.mean
    return number(cost.worse, cost.part.headline, beside=cost.plain.mean.mean)


def _megabytes(sent: float) -> str:
    return f"{sent / 1e6:,.1f}" if sent >= 1e6 or not sent else f"{sent / 1e6:.2g}"


def _seconds(line: Line) -> str:
    if line.seconds is None:
        return ""
    return f"{line.seconds:,.0f}" if line.seconds >= 10 else f"{line.seconds:,.1f}"


def _metric_columns(part: Part) -> list[Column]:
    """Metrics beside the headline: those of its unit, the averaged model's headline, the others."""
    headline = part.headline
    declared = {metric.name: metric for line in part.lines for metric in line.metrics}
    others = [it for it in declared.values() if it.tabulated and it.name != headline.name]
    if not others:
        return []

    def column(metric: Metric) -> Column:
        return (
            metric.label,
            lambda line: shown(line.metric(metric.name), metric) if line.records else "",
        )

    def averaged(line: Line) -> str:
        return shown(line.averaged(headline.name), headline) if line.records else ""

    return [
        *(column(it) for it in others if it.unit == headline.unit),
        ("averaged model", averaged),
        *(column(it) for it in others if it.unit != headline.unit),
    ]


def _weights(line: Line) -> str:
    spreads = [line.weighed(attackers=liars) for liars in (True, False)]
    means = [weights.mean if weights else None for weights in spreads]
    return "" if means == [None, None] else " / ".join(figure(it, "{:.2f}") for it in means)


def _notes(part: Part, letters: dict[str, str], private: bool) -> list[str]:
    notes = [f"{part.about}."] if part.about else []
    if any(line.records for line in part.lines):
        notes.append(_late_note(part.headline, part.lines[0].late) + ".")
    if any(line.choice and line.choice.edge for line in part.lines):
        notes.append(f"{EDGE_NOTE}.")
    if sentence := verdict(part):
        notes.append(sentence)
    notes += [f"({letter}) {conditions}." for conditions, letter in letters.items()]
    if private and letters:
        notes.append(f"ε_link: one neighbor's stream of answers alone; {LINK}.")
    return notes + [failure for line in part.lines for failure in line.failures]


def _reached(line: Line) -> str:
    if not line.records:
        return ""
    return "not reached" if line.rounds_to is None else spread(line.rounds_to, "{:.0f}")


def _late_note(metric: Metric, late: int) -> str:
    labels = metric.labels[0].upper() + metric.labels[1:]
    percent = " in percent" if metric.unit == "ratio" else ""
    return LATE_NOTE.format(labels=f"{labels}{percent}", late=late)


def rates(part: Part) -> Grid | None:
    """What tuning saw: the headline on held-out training data, rate by rate; None: nothing was
    tuned.
    """
    metric = part.headline
    tried = sorted({lr for line in part.lines if line.choice for lr in line.choice.tried})
    if not tried:
        return None

    def cell(line: Line, lr: float) -> str:
        known = line.choice.tried.get(lr) if line.choice else None
        mark = " *" if line.choice and line.choice.lr == lr else ""
        return f"{'–' if known is None else number(known, metric)}{mark}"

    return Grid(
        title=f"{part.title}: learning rates",
        head=("method", *(f"{lr:g}" for lr in tried)),
        rows=tuple(
            (line.method, *(cell(line, lr) for lr in tried))
            for line in part.lines
            if line.row.tuned
        ),
        notes=(
            f"{metric.label[0].upper()}{metric.label[1:]} on held-out training data on the tuning "
            f"seed{', in percent' if metric.unit == 'ratio' else ''}; * was chosen.",
        ),
    )


def markdown(report: SweepReport) -> str:
    """All tables."""
    lines = [f"## {quoted(report.sweep.title)}", "", quoted(progress(report)), ""]
    for note in report.notes:
        lines += [quoted(note), ""]
    for grid in grids(report):
        head = [_row(map(quoted, grid.head)), _row(["---"] * len(grid.head))]
        lines += [
            f"### {quoted(grid.title)}",
            "",
            *head,
            *(_row(map(quoted, row)) for row in grid.rows),
            "",
        ]
        lines += [f"* {quoted(note)}" for note in grid.notes] + [""]
    return "\n".join(lines)


def progress(report: SweepReport) -> str:
    """How far it is, in a sentence."""
    hours = sum(record["cpu_seconds"] for record in report.records) / 3600
    versions = sorted(
        {
            f"peerpoise {it['version']}, torch {it['torch']}, {it['machine']}"
            for it in report.records
        }
    )
    sentence = f"{report.finished} of {report.trials} cells are finished, {hours:.2f} core-hours"
    return sentence + (f" ({'; '.join(versions)})." if versions else ".")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(text: str) -> str:
    """A line in which every character can be seen: names and failures come from other people's
    files and code.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in line)


def quoted(text: str) -> str:
    """Text as it stands, for Markdown: no HTML, link, picture or cell of a table begins in it."""
    return re.sub(r"([\\`*\[\]|]|^[#+-])", r"\\\1", html.escape(plain(text), quote=False))


def rich(grid: Grid) -> Table:
    """For a terminal; notes are the caption."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(grid.title)), title_justify="left", box=None)
    for name in grid.head:
        table.add_column(Text(plain(name)))
    for row in grid.rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    table.caption = Text("\n".join(map(plain, grid.notes)))
    table.caption_justify = "left"
    return table
