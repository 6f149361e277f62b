"""The command `audit`: attacks on a run's own promise, before or after it runs. Part of the command
line (`node/cli/app.py`).
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import Curious, Json, Settings, names
from node.observability.output import print_json, screen
from peer.errors import EXIT_BROKEN, EXIT_OK, ConfigurationError

app = typer.Typer()

NAMES = ("canaries", "inversion", "knowledge", "membership")
"""Of the attacks, as in `node.audit.AUDITS`; importing that would load torch."""
EXAMPLES = ("full", "non-iid", "poisoned", "private", "quickstart", "scattering")
"""Those whose messages all attacks know."""


@app.command()
def audit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT.toml",
            help=f"An experiment, a run.toml, or an example: {', '.join(EXAMPLES)}.",
        ),
    ],
    settings: Settings = [],
    only: Annotated[
        list[str],
        typer.Option(metavar="NAME", help=f"This attack alone (repeatable): {', '.join(NAMES)}."),
    ] = [],
    curious: Curious = "",
    canaries: Annotated[
        int, typer.Option(min=400, help="Records of a known gradient; more see sharper.")
    ] = 10_000,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds that are attacked (default: the run's).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the attackers' own draws.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, and weaker.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page to be passed on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack a run on this machine, and hold what was seen against the ε it promises.

    canaries: what its messages tell of made-up records, as a lower bound on ε. inversion: images
    that a neighbor reads from gradients. knowledge: which gradients the curious could compute if
    there were no noise. membership: who can tell that a record is there.

    Exit code 5 when an attack refutes the ε, 78 when none can be made of this run. No real record
    is used but what a public data set has.
    """
    from node import audit as auditing
    from node.audit import page
    from node.config import ExperimentConfig, NodeConfig, detect_config, load
    from node.daemon.bootstrap import resolve_paths
    from node.experiments.report import files, tables
    from node.experiments.resolve import members, resolve

    if detect_config(file) is not ExperimentConfig:
        run = resolve_paths(load(NodeConfig, [file]), file.parent).run
        raise ConfigurationError(f"{file} is a node's file; audit the run that it names, {run}.")
    config = load(ExperimentConfig, [file], settings)
    resolved = resolve(config, members(config, file.parent / "roster.json"))
    config = resolved.experiment
    options = auditing.Options(
        curious=names(curious),
        canaries=canaries,
        rounds=rounds,
        seed=seed,
        quick=quick,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    findings = auditing.run(resolved, only, options)
    if out is not None:
        files.put(out, page.html_page(config, findings, options).encode())
        print(f"The page is {out}.", file=sys.stderr)
    if as_json:
        print_json(page.document(config, findings))
    else:
        console = screen()
        for finding in chain.from_iterable(findings.values()):
            console.print(tables.rich(finding.table), "")
        console.print(page.verdict(config, findings), markup=False, soft_wrap=True)
    if page.broken(findings):
        raise typer.Exit(EXIT_BROKEN)
    nothing = len(page.not_made(findings)) == len(findings)
    raise typer.Exit(ConfigurationError.exit_code if nothing else EXIT_OK)
