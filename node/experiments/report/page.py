"""One HTML file: tables and plots of one or more sweeps, with nothing outside of it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import tomli_w

from node.config import drop_none
from node.experiments.report import plots, tables
from node.experiments.report.aggregate import Part, SweepReport
from node.experiments.report.tables import Grid

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #5a6470; --rule: #d5dae0; --stripe: #f5f7f9;
  --c0: #0060a8; --c1: #c44e00; --c2: #00785a; --c3: #a83279; --c4: #7a5cb8; --c5: #8a6d00; --c6: #c0392b;
  --c7: #4a5560; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --paper: #14181d; --soft: #9ba6b2; --rule: #38414b;
  --stripe: #1b2128; --c0: #5aaef0; --c1: #ff9a52; --c2: #3fce9f; --c3: #f08cc4; --c4: #b69cf2; --c5: #d9b93b;
  --c6: #ff7d70; --c7: #aab6c2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.4rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p, ul.notes, pre { max-width: 48rem; } .soft, ul.notes, figcaption, nav { color: var(--soft); font-size: .9rem; }
ul.notes { padding-left: 1.2rem; margin: .4rem 0 1.2rem; } a { color: inherit; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { padding-left: .4rem; }
thead th { border-bottom: 2px solid var(--rule); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; } tbody tr:nth-child(even) { background: var(--stripe); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; break-inside: avoid; } figure svg { width: 100%; height: auto; display: block; }
figcaption { padding-bottom: .3rem; } details { margin: .6rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--stripe); padding: .8rem; font-size: .85rem; max-width: 100%; }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #444; --rule: #bbb; --stripe: #fff;
  --c0: #0060a8; --c1: #c44e00; --c2: #00785a; --c3: #a83279; --c4: #7a5cb8; --c5: #8a6d00; --c6: #c0392b;
  --c7: #4a5560; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav, details { display: none; }
  .wide { overflow: visible; } table { font-size: 8pt; } th, td { padding-right: .5rem; white-space: normal; }
  tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .figures { grid-template-columns: 1fr 1fr; } }
"""


def page(reports: Sequence[SweepReport]) -> str:
    """Raises ConfigurationError: matplotlib is not installed."""
    title = reports[0].sweep.title if len(reports) == 1 else "Results"
    inner = "".join(part for report in reports for part in _sweep(report, alone=len(reports) == 1))
    return framed(title, f"{_contents(reports)}\n{inner}")


def framed(title: str, inner: str) -> str:
    """The whole file around what stands below the title."""
    heading = f"<h1>{escape(title)}</h1>"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{heading}\n"
        f"{inner}</main>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """A line of text as it stands, for HTML."""
    return html.escape(tables.plain(text))


def _contents(reports: Sequence[SweepReport]) -> str:
    links = [
        (
            _anchor(report, part),
            part.title if len(reports) == 1 else f"{report.sweep.title}: {part.title}",
        )
        for report in reports
        for part in report.parts
    ]
    if len(links) < 2:
        return ""
    items = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in links)
    return f'<nav aria-label="Settings"><ul>{items}</ul></nav>'


def _sweep(report: SweepReport, *, alone: bool) -> Iterator[str]:
    if not alone:
        yield f"<h2>{escape(report.sweep.title)}</h2>\n"
    yield f'<p class="soft">{escape(tables.progress(report))}</p>\n'
    for note in report.notes:
        yield f"<p>{escape(note)}</p>\n"
    grids = tables.grids(report)
    for grid in grids[: len(grids) - len(report.parts)]:
        yield table(grid)
    for part, grid in zip(report.parts, grids[-len(report.parts) :], strict=True):
        yield from _part(report, part, grid, "h2" if alone else "h3")
    configuration = tomli_w.dumps(drop_none(report.sweep.source))
    yield f"<details><summary>Configuration</summary><pre>{html.escape(configuration)}</pre></details>\n"


def _part(report: SweepReport, part: Part, grid: Grid, level: str) -> Iterator[str]:
    yield f'<section aria-labelledby="{_anchor(report, part)}">\n'
    yield f'<{level} id="{_anchor(report, part)}">{escape(part.title)}</{level}>\n'
    yield table(grid, headed=True)
    if tried := tables.rates(part):
        yield (
            f"<details><summary>Learning rates that were tried</summary>{table(tried)}</details>\n"
        )
    yield '<div class="figures">\n'
    for plot in plots.plots(part, report.methods):
        yield drawn(plot)
    yield "</div>\n</section>\n"


def drawn(plot: plots.Plot) -> str:
    svg = plot.inline().replace("<svg", f'<svg role="img" aria-label="{escape(plot.alt)}"', 1)
    return f"<figure><figcaption>{escape(plot.title)}</figcaption>{svg}</figure>\n"


def table(grid: Grid, *, headed: bool = False) -> str:
    """headed: a heading above it says the same as its caption, which is then for screen readers
    only.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.head)
    rows = "".join(
        "<tr><th "
        f'scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>\n'
        for first, *rest in grid.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in grid.notes)
    label, hidden = escape(grid.title), ' class="hidden"' if headed else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}">\n<table>\n'
        f"<caption{hidden}>{label}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def _anchor(report: SweepReport, part: Part) -> str:
    names = [plots.slug(it.name) for it in report.parts]
    place = next(k for k, it in enumerate(report.parts) if it is part)
    again = names[:place].count(names[place])
    return f"s-{plots.slug(report.sweep.name)}-{names[place]}" + (f"-{again + 1}" if again else "")
