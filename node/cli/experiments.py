"""Commands for many experiments: sweep, report. Part of the command line (`node/cli/app.py`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import Json, Settings
from node.observability.output import print_json, screen
from peer.errors import EXIT_FAILURE, EXIT_OK, ConfigurationError

if TYPE_CHECKING:
    from node.experiments.sweep.folder import Folder
    from node.experiments.sweep.grid import Sweep
    from node.experiments.sweep.loop import Outcome

app = typer.Typer()

Only = Annotated[
    list[str],
    typer.Option(
        "--only", metavar="NAME", help="This setting or method, or SETTING/METHOD (repeatable)."
    ),
]


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP.toml", help="An experiment and [sweep]: peerpoise show sweeps."
        ),
    ],
    settings: Settings = [],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results (default runs/sweep-NAME).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a core each.")] = 1,
    only: Only = [],
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many cells.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Start no cell after this many core-hours.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ten rounds, two rates, one seed: does it run?")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the cells, and what they would take.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: run ten rounds of each row first.")
    ] = False,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Keep finished cells of other versions of the code.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="On a Ray cluster: local, auto or host:port."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run many experiments: settings × methods × learning rates × seeds, and show tables.

    Finished cells are kept; called again, it goes on. Exit code 1 if a cell failed.
    """
    from node.experiments.sweep import grid
    from node.experiments.sweep.folder import Folder

    known = grid.load(file, settings, quick=quick).only(only)
    path = out or Path("runs") / f"sweep-{known.name}{'-quick' if quick else ''}"
    folder = Folder(path, any_code=any_code)
    if dry_run:
        _dry_run(known, folder, measure=measure, as_json=as_json)
        return
    outcome = _run(known, folder, jobs=jobs, limit=limit, budget=budget, ray=ray, quiet=as_json)
    _show(known, folder, outcome, as_json=as_json)
    raise typer.Exit(EXIT_FAILURE if outcome.failed else EXIT_OK)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="--out folders of sweeps, or a run folder."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page (default FOLDER/report.html).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also the tables as Markdown.")] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also each plot, as SVG and PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one HTML file of the results of one or more sweeps, or of a single run: tables, plots,
    configuration; nothing outside of it.
    """
    from node.experiments.report import aggregate, files, page, run, tables
    from node.experiments.report import plots as drawing

    if len(folders) == 1 and (folders[0] / "summary.json").exists():
        if markdown or plots:
            raise ConfigurationError(
                "--markdown and --plots are for sweeps; the report of a run is one page (--out)."
            )
        file = out or folders[0] / "report.html"
        files.put(file, run.document(run.read(folders[0])).encode())
        if as_json:
            print_json({"files": [str(file)], "sweeps": []})
        else:
            typer.echo(str(file))
        return
    for folder in folders:
        if (folder / "summary.json").exists() and not (folder / "sweep.json").exists():
            raise ConfigurationError(f"{folder} holds a run, of which report takes one at a time.")
    reports = [aggregate.find(folder) for folder in folders]
    made = {out or folders[0] / "report.html": page.page(reports).encode()}
    if markdown:
        made[markdown] = "\n".join(map(tables.markdown, reports)).encode()
    names = Counter[str]()
    """Of plots: settings "a b" and "a-b" have one."""
    for sweep_report in reports if plots else ():
        assert plots
        for part in sweep_report.parts:
            for plot in drawing.plots(part, sweep_report.methods):
                name = f"{sweep_report.sweep.name}-{plot.name}"
                names[name] += 1
                name += f"-{names[name]}" if names[name] > 1 else ""
                made[plots / f"{name}.svg"] = plot.svg().encode()
                made[plots / f"{name}.png"] = plot.png()
    for path, content in made.items():
        files.put(path, content)
    if as_json:
        print_json(
            {
                "files": [str(path) for path in made],
                "sweeps": [files.document(sweep_report) for sweep_report in reports],
            }
        )
    else:
        typer.echo("\n".join(str(path) for path in made))


def _run(
    known: Sweep,
    folder: Folder,
    *,
    jobs: int,
    limit: int | None,
    budget: float | None,
    ray: str | None,
    quiet: bool,
) -> Outcome:
    from node.experiments.report import aggregate, files
    from node.experiments.resolve import resolve
    from node.experiments.sweep import loop
    from node.experiments.sweep.raycluster import RayCluster
    from node.experiments.sweep.workers import Runner, Workers

    for row in known.rows:
        trial = row.trial(row.rates[0], row.seeds[0], tuning=False)
        try:
            resolve(trial.config).checked()
        except ConfigurationError as error:
            sentence = str(error).rstrip(".")
            raise ConfigurationError(
                f"{sentence} (setting {row.setting}, method {row.method})."
            ) from None
    with folder.claimed(known):
        runner: Runner = (
            RayCluster(ray, jobs) if ray else Workers(jobs, folder.path / "workers.log")
        )
        outcome = loop.run(known, folder, runner, limit=limit, budget=budget, quiet=quiet)
        files.write(aggregate.collect(known, folder), folder.path)
    return outcome


def _show(known: Sweep, folder: Folder, outcome: Outcome, *, as_json: bool) -> None:

    from node.experiments.report import aggregate, files, tables

    findings = aggregate.collect(known, folder)
    totals: dict[str, object] = {
        "finished": outcome.finished,
        "failed": outcome.failed,
        "left": outcome.left,
    }
    totals |= {
        "core_hours": outcome.core_hours,
        "stopped": outcome.stopped or None,
        "folder": str(folder.path),
    }
    if as_json:
        print_json(files.document(findings) | totals)
        return
    console = screen()
    for grid in tables.grids(findings):
        console.print(tables.rich(grid), "")
    for note in findings.notes:
        console.print(note, markup=False)
    more = f" Stopped: {outcome.stopped}." if outcome.stopped else ""
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    console.print(
        f"{outcome.finished} cells finished{failed}, {outcome.left} left.{more}", markup=False
    )
    console.print(f"peerpoise report {folder.path}", markup=False, soft_wrap=True)


def _dry_run(known: Sweep, folder: Folder, *, measure: bool, as_json: bool) -> None:
    from rich.console import Console

    from node.experiments.sweep import estimate

    folder.check(known)
    if measure:
        with folder.claimed(known):
            estimate.measure(known, folder, quiet=as_json)
    forecast = estimate.estimated(known, folder)
    if as_json:
        print_json(estimate.document(forecast, known, folder))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for line in estimate.lines(forecast):
            console.print(line, markup=False)
