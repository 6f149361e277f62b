"""Commands that advise before anything runs: plan, doctor, bench. Part of the command line
(`node/cli/app.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import Curious, Json, Settings, names
from node.observability.output import print_json, screen
from peer.errors import EXIT_FAILURE, EXIT_OK

app = typer.Typer()


@app.command()
def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.toml]", help="An experiment, a run.toml, or a node.toml."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target ε_total: which σ?")] = None,
    sigma: Annotated[float | None, typer.Option(help="Noise multiplier: which ε_total?")] = None,
    delta: Annotated[float | None, typer.Option(help="δ.")] = None,
    rounds: Annotated[int | None, typer.Option(help="T.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="q, the probability of each example in a batch.")
    ] = None,
    graph: Annotated[str | None, typer.Option(help="Graph, of those in topology.kind.")] = None,
    nodes: Annotated[int | None, typer.Option(help="N.")] = None,
    degree: Annotated[
        int | None, typer.Option(min=0, help="Neighbors of a node, instead of a graph.")
    ] = None,
    data: Annotated[str, typer.Option(help="Name of private data: what its ledger has left.")] = "",
    limit: Annotated[
        float | None, typer.Option(min=0, help="Lifetime ε_total of these data.")
    ] = None,
    proposals: Annotated[
        bool, typer.Option("--propose", help="Which other q, T and K cost as much compute?")
    ] = False,
    examples: Annotated[
        float | None,
        typer.Option(min=1, help="With --propose: gradients of examples a node may compute."),
    ] = None,
    megabytes: Annotated[
        float | None,
        typer.Option(min=0, help="With --propose: what a node may send, if it gossips."),
    ] = None,
    curious: Curious = "",
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Show how much noise a target ε takes, or which ε a noise gives, on this and on other graphs.

    Computed with PLD, as in a run. FILE sets what no option does; a node.toml also names the ledger
    of its data.
    """
    from rich.console import Console

    given = {
        "privacy.epsilon": epsilon,
        "privacy.sigma": sigma,
        "privacy.delta": delta,
        "train.rounds": rounds,
        "privacy.rate": rate,
        "topology.kind": graph,
        "experiment.nodes": nodes,
    }
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    if (epsilon is None) != (sigma is None):
        options.append("privacy.sigma=" if sigma is None else "privacy.epsilon=")
    console = screen(soft_wrap=True)
    with Console(stderr=True).status("loading") as progress:
        from node.cli import plan as planning
        from node.cli import plan_shown
        from node.cli.proposals import Limits
        from node.experiments.report import tables

        limits = Limits(examples=examples, megabytes=megabytes) if proposals else None
        question = planning.read(file, [*options, *settings])
        question = planning.with_options(
            question, degree=degree, data=data, limit=limit, limits=limits
        )
        known = planning.known(question, names(curious)) if curious else None
        privacy_plan = planning.answer(question, progress.update)
    if as_json:
        more = {"knowledge": known.document} if known else {}
        print_json({**plan_shown.document(privacy_plan), **more})
    else:
        console.print(plan_shown.show(privacy_plan))
        if known:
            console.print("", tables.rich(known.table))


@app.command()
def budget(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="The data's name; all ledgers, if left out."),
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option("--config", metavar="NODE.toml", help="Whose ledgers, limit and δ."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="δ, instead of the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Show what was spent of private data, by which runs, and what is left.

    Daemons may run meanwhile. What a run to come would cost: peerpoise plan NODE.toml.
    """

    from node.cli import budget as spending

    accounts = spending.accounts(file, name, delta)
    if as_json:
        print_json(spending.document(accounts))
    else:
        screen(soft_wrap=True).print(spending.show(accounts))


@app.command()
def doctor(
    file: Annotated[
        Path | None,
        typer.Option("--config", metavar="NODE.toml", help="Look at this node's files, too."),
    ] = None,
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Look at this machine, and at a node's files: what would keep a daemon from running, and what
    to do about it.

    Exit code 0 when nothing is ✗.
    """
    from rich.console import Console

    from node.cli import doctor as examination

    with Console(stderr=True).status("looking"):
        findings = list(examination.examine())
        if file is not None:
            from node.cli import doctor_node

            findings += doctor_node.examine(file, settings)
    examined = examination.document(findings)
    if as_json:
        print_json(examined)
    else:
        screen().print(examination.show(findings))
    raise typer.Exit(EXIT_OK if examined["ok"] else EXIT_FAILURE)


@app.command()
def schema(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A table of ONE site, or a public Table Schema (.json)."
        ),
    ],
    label: Annotated[str, typer.Option(help="The column to learn.")] = "label",
    as_json: Json = False,
) -> None:
    """Propose [task.features] for a table, to be agreed on by all sites.

    From a table it looks at its rows, and says so: put public figures in place of what it found.
    """
    import tomllib

    from node.data import proposal

    text = proposal.propose(file, label)
    if as_json:
        head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
        print_json({"note": " ".join(head), **tomllib.loads(text)})
    else:
        typer.echo(text, nl=False)


@app.command()
def bench(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.toml]", help="An experiment or a run.toml (else the quickstart's)."
        ),
    ] = None,
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Measure what a node's round costs on this machine: gradients, noise, ledger, wire, steps.

    With --set experiment.device=cuda on the GPU. A floor: nothing is waited for, nothing goes over
    a network.
    """
    from rich.console import Console

    console = screen(soft_wrap=True)
    with Console(stderr=True).status("loading") as progress:
        from node.cli import bench as measuring

        report = measuring.measure(measuring.read(file, settings), progress.update)
    if as_json:
        print_json(measuring.document(report))
    else:
        console.print(measuring.show(report))
