"""A sweep's report as pictures: SVG or PNG, the same bytes for the same figures.

matplotlib is the extra [report].
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

from node.encoding import Json
from node.experiments.report.aggregate import Line, Part
from node.experiments.report.spreads import shown
from node.figures import Metric
from peer.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Column: TypeAlias = Callable[[Json], Sequence[float | None]]
"""Of a run's figures, what is drawn along the x axis."""
INK = "#123456"
"""Text and frames; the page shows it in its own color of text."""
COLORS = ("#0060a8", "#c44e00", "#00785a", "#a83279", "#7a5cb8", "#8a6d00", "#c0392b", "#4a5560")
"""Told apart by the color-blind together with MARKERS and dashes; the page has brighter ones for
dark screens.
"""
MARKERS = "os^Dv<P>"
DASHES = ("-", "--", ":")
NUMBERS = 12
"""Up to so many nodes a heat map has its values written in it."""
MANY = 2e10
"""From so many bytes on they are counted in GB."""
SIZE = (5.4, 3.4)
"""Inches, without the legend."""
LONG = 21
"""Characters of a legend's word, of which three do not fit beside each other."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "peerpoise",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.labelsize": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    name: str
    """For a file: setting-what."""
    title: str
    alt: str
    """What it shows, in words."""
    figure: Figure

    def svg(self) -> str:
        """A document of its own, on white."""
        return _saved(self.figure, "svg", facecolor="white").decode()

    def inline(self) -> str:
        """An element for a page: no header, no metadata, colors of the page's own."""
        text = _saved(self.figure, "svg", transparent=True).decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(
            r'(<svg[^>]*?) width="[^"]*"',
            r"\1",
            re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
            count=1,
        )
        for number, color in enumerate(COLORS):
            text = text.replace(color, f"var(--c{number})")
        return re.sub(r"^\s+", "", text.replace(INK, "currentColor"), flags=re.MULTILINE)

    def png(self) -> bytes:
        return _saved(self.figure, "png", facecolor="white", dpi=160)


def plots(part: Part, methods: Sequence[str]) -> Iterator[Plot]:
    """Of one setting: the headline metric against rounds, bytes, tokens and ε; consensus distance;
    weights per neighbor.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    _checked()
    lines = [line for line in part.lines if line.metrics]
    if not lines:
        return
    most = max(max(line.figures[0]["bytes"]) for line in lines)
    unit, size = ("GB", 1e9) if most > MANY else ("MB", 1e6)
    against: list[tuple[str, str, Column]] = [
        ("rounds", "rounds", lambda figures: figures["rounds"]),
        ("bytes", f"{unit} sent per node", lambda figures: [it / size for it in figures["bytes"]]),
    ]
    for what, label, x in against:
        yield _curves(part, lines, methods, what, label, x)
    drawing = [line for line in lines if all(figures.get("tokens") for figures in line.figures)]
    if drawing:
        label = "tokens of own answers per node"
        yield _curves(part, drawing, methods, "tokens", label, lambda figures: figures["tokens"])
    private = [line for line in lines if line.conditions and line.figures[0]["epsilon"]]
    guaranteed = [line for line in private if None not in line.figures[0]["epsilon"]["total"]]
    if guaranteed:
        epsilon = guaranteed[0].figures[0]["epsilon"]
        label = (
            f"ε_total so far ({epsilon['mode']}, {epsilon['adjacency']}, "
            f"δ = {epsilon['delta']:g},\n"
            f"{epsilon['batches']} batches, {epsilon['accountant']}, against {epsilon['against']})"
        )
        yield _curves(
            part, guaranteed, methods, "epsilon", label, lambda figures: figures["epsilon"]["total"]
        )
    apart = [line for line in lines if None not in line.figures[0]["distance"]]
    if apart and any(max(line.figures[0]["distance"]) > 0 for line in apart):
        yield _distance(part, apart, methods)
    for line in lines:
        diagnostics = line.figures[0]["declared"]["diagnostics"]
        names = [it["name"] for it in diagnostics if it["name"] in line.figures[0]["weights"]]
        if names:  # the first that is declared is the one that is drawn
            yield _heat(part, line, names[0])


def of_nodes(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Plot:
    """Of one run: node -> what is drawn against what. `x` and `y` say it in words.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    _checked()
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.22 * -(-len(curves) // 3)))
        axes = figure.subplots()
        for k, (node, (across, up)) in enumerate(curves.items()):
            color, dash = COLORS[k % len(COLORS)], DASHES[k // len(COLORS) % len(DASHES)]
            axes.plot(across, up, label=node, color=color, linestyle=dash)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(figure, axes)
    title = f"{y[0].upper()}{y[1:]} against {x}"
    return Plot(name=slug(y), title=title, alt=f"{title}. Lines: a node each.", figure=figure)


def _curves(
    part: Part,
    lines: Sequence[Line],
    methods: Sequence[str],
    what: str,
    label: str,
    x: Column,
) -> Plot:
    metric = part.headline
    percent = "%" if metric.unit == "ratio" else ""
    with _style():
        figure, axes = _axes(lines)
        for line in lines:
            curves = [
                [metric.scale * v for v in _over_nodes(figures, metric)] for figures in line.figures
            ]
            _draw(axes, line, methods, _middle([x(it) for it in line.figures]), curves)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{metric.label}, mean of the nodes{percent and ', %'}")
        _legend(figure, axes)
    ends = ", ".join(
        f"{line.method} {shown(line.mean, metric)} {percent}".strip() for line in lines
    )
    plain = " ".join(label.split())
    title = f"{metric.label[0].upper()}{metric.label[1:]} against {plain.partition(' (')[0]}"
    alt = (
        f"{title}, setting {part.title}. Lines: a method each. Late means: {ends}. "
        f"Horizontal: {plain}."
    )
    return Plot(name=f"{slug(part.name)}-{what}", title=title, alt=alt, figure=figure)


def _distance(part: Part, lines: Sequence[Line], methods: Sequence[str]) -> Plot:
    from matplotlib.ticker import LogFormatter

    with _style():
        figure, axes = _axes(lines)
        ends = []
        for line in lines:
            curves = [[max(v, 1e-12) for v in figures["distance"]] for figures in line.figures]
            _draw(axes, line, methods, _middle([it["rounds"] for it in line.figures]), curves)
            ends.append(f"{line.method} {statistics.fmean(curve[-1] for curve in curves):.2g}")
        axes.set_yscale("log")
        # In plain text: a "$" in a name begins no formula (text.parse_math), nor does one here.
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        axes.set_xlabel("rounds")
        axes.set_ylabel("consensus distance")
        _legend(figure, axes)
    alt = (
        f"Consensus distance against rounds, logarithmic, setting {part.title}. At the end: "
        f"{', '.join(ends)}."
    )
    return Plot(
        name=f"{slug(part.name)}-distance", title="Consensus distance", alt=alt, figure=figure
    )


def _heat(part: Part, line: Line, kind: str) -> Plot:
    weights = _late_weights(line, kind)
    nodes = sorted({name for pair in weights for name in pair})
    liars = set(line.attackers)
    rows = [node for node in nodes if any(pair[0] == node for pair in weights)]
    values = [[weights.get((node, peer), float("nan")) for peer in nodes] for node in rows]
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(SIZE[0], 1.4 + 0.34 * len(rows) if len(rows) <= NUMBERS else SIZE[0])
        )
        axes = figure.subplots()
        axes.grid(visible=False)
        low, high = min(0.0, *weights.values()), max(*weights.values(), 0.0)
        mesh = axes.pcolormesh(values, cmap="cividis", vmin=low, vmax=high or 1.0)
        names = [f"{name} ✗" if name in liars else name for name in nodes]
        axes.set_xticks(
            [k + 0.5 for k in range(len(nodes))], names, rotation=45 if len(nodes) > 8 else 0
        )
        axes.set_yticks([k + 0.5 for k in range(len(rows))], rows)
        axes.invert_yaxis()
        axes.set_xlabel("neighbor" + (" (✗: attacker)" if liars else ""))
        axes.set_ylabel("node")
        figure.colorbar(mesh, ax=axes, label=kind)
        if len(nodes) <= NUMBERS:
            for (node, peer), value in weights.items():
                share = (value - low) / ((high - low) or 1.0)
                color = "black" if share > 0.55 else "white"
                place = nodes.index(peer) + 0.5, rows.index(node) + 0.5
                axes.text(
                    *place,
                    f"{value:.2f}".replace("0.", ".", 1),
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=8,
                )
    means = [
        statistics.fmean(v for (i, j), v in weights.items() if i != j and (j in liars) is lies)
        for lies in _kinds(weights, liars)
    ]
    words = [f"honest neighbors {means[0]:.3g}", *(f"attackers {it:.3g}" for it in means[1:])]
    alt = (
        f"{kind} each node gives its neighbors, {line.method}, setting {part.title}. Means: "
        f"{', '.join(words)}."
    )
    name = f"{slug(part.name)}-{kind}-{slug(line.method)}"
    return Plot(name=name, title=f"{line.method}: {kind} per neighbor", alt=alt, figure=figure)


def _kinds(weights: Mapping[tuple[str, str], float], liars: set[str]) -> list[bool]:
    return [
        lies for lies in (False, True) if any(i != j and (j in liars) is lies for i, j in weights)
    ]


def _late_weights(line: Line, kind: str) -> dict[tuple[str, str], float]:
    """(node, neighbor) -> mean over late evaluations and seeds."""
    series: dict[tuple[str, str], list[float]] = {}
    for figures in line.figures:
        for node, by_peer in figures["weights"].get(kind, {}).items():
            for peer, values in by_peer.items():
                series.setdefault((node, peer), []).extend(
                    v for v in values[-line.late :] if v is not None
                )
    return {pair: statistics.fmean(values) for pair, values in series.items() if values}


def _draw(
    axes: Axes,
    line: Line,
    methods: Sequence[str],
    x: Sequence[float],
    curves: Sequence[Sequence[float]],
) -> None:
    """The mean of the runs, and the range of them."""
    k = methods.index(line.method)
    color = COLORS[k % len(COLORS)]
    every = max(1, len(x) // 8)
    axes.plot(
        x,
        _middle(curves),
        marker=MARKERS[k % len(MARKERS)],
        markevery=(k % every, every),
        label=line.method,
        color=color,
        linestyle=DASHES[k // len(COLORS) % len(DASHES)],
    )
    if len(curves) > 1:
        columns = list(zip(*curves, strict=False))
        axes.fill_between(
            x,
            [min(it) for it in columns],
            [max(it) for it in columns],
            color=color,
            alpha=0.12,
            lw=0,
        )


def _over_nodes(figures: Json, metric: Metric) -> list[float]:
    by_node = figures["metrics"][metric.name].values()
    return [
        statistics.fmean(v for v in values if v is not None)
        for values in zip(*by_node, strict=True)
    ]


def _middle(columns: Sequence[Sequence[object]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*columns, strict=False)]


def _axes(lines: Sequence[Line]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    rows = -(-len(lines) // _columns([line.method for line in lines]))
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.22 * rows))
    return figure, figure.subplots()


def _columns(labels: Sequence[str]) -> int:
    """Of the legend."""
    return min(3 if max(map(len, labels)) < LONG else 2, len(labels))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=_columns(labels),
        frameon=False,
        fontsize=9,
    )


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    out = BytesIO()
    with _style():
        figure.savefig(
            out,
            format=form,
            metadata={"Date": None, "Creator": None} if form == "svg" else {"Software": None},
            **options,
        )
    return out.getvalue()


def _checked() -> None:
    try:
        import matplotlib
    except ImportError:
        raise ConfigurationError(
            "Plots need matplotlib, which is missing: pip install 'peerpoise[report]'."
        ) from None
    matplotlib.use("agg")
