"""The command line: `peerpoise COMMAND`.

Nothing heavy is imported at the top (the help must come at once): a command imports what it needs
when it runs. Commands of one kind have a file of their own.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from node.cli import audit, config, experiments, federation, inspect, ledger, predict, show
from node.cli.options import Json, Settings
from node.observability.output import print_json
from peer.errors import (
    BudgetSpent,
    ConfigurationError,
    Diverged,
    TaskError,
)

app = typer.Typer(
    help="Machines that learn together without a server: private cross-gradients between peers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(federation.app)
app.add_typer(federation.ca, name="ca")
app.add_typer(federation.roster, name="roster")
app.add_typer(ledger.app, name="ledger")
app.add_typer(config.app, name="config")
app.add_typer(inspect.app)
app.add_typer(audit.app)
app.add_typer(experiments.app)
app.add_typer(show.app)
app.add_typer(predict.app)

Experiment = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERIMENT.toml",
        help="A run and [experiment]; or an example by its name, such as quickstart.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="FILE.py:FUNCTION", help="Your own task; also MODULE:FUNCTION."),
]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Run folder to make (default runs/NAME-TIME).")
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="No TLS. One machine, experiments only; shown everywhere."),
]
Loop = Annotated[
    Literal["auto", "uvloop", "asyncio"], typer.Option(help="Event loop of the daemons.")
]
Own = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="NODE=PATH",
        help='Try a node\'s own file here (repeatable); task.data = "own".',
    ),
]
OwnTest = Annotated[
    list[str], typer.Option("--test", metavar="NODE:PATH", help="A node's private test set.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Node = Annotated[str | None, typer.Option("--node", help="This node's model.")]
Average = Annotated[
    bool, typer.Option("--average", help="The average of all nodes' models (the default).")
]


@app.callback(invoke_without_command=True)
def peerpoise(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"peerpoise {installed('peerpoise')}")
        raise typer.Exit


@app.command()
def up(
    experiment: Experiment,
    settings: Settings = [],
    task: Task = None,
    data: Own = [],
    test: OwnTest = [],
    folder: Folder = None,
    insecure: Insecure = False,
    loop: Loop = "auto",
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Afterwards train without noise, to compare.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a local cluster, one daemon per node, and follow it to its end."""
    from node.cli import doctor
    from node.experiments import local_cluster, own_files

    doctor.refuse_clashes()
    config, own = own_files.nodes_with_files(_experiment(experiment, settings, task), data, test)
    summary, code = local_cluster.up(
        config,
        folder,
        insecure=insecure,
        loop=loop,
        baseline=baseline,
        quiet=as_json,
        own=own,
    )
    if as_json:
        print_json(
            summary.model_dump(mode="json")
            if summary
            else {"error": "No node finished.", "exit_code": code}
        )
    raise typer.Exit(code)


@app.command()
def simulate(
    experiment: Experiment,
    settings: Settings = [],
    task: Task = None,
    data: Own = [],
    test: OwnTest = [],
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Run an experiment in one process, with the same bits."""
    from node.experiments import local_cluster, own_files

    config, own = own_files.nodes_with_files(_experiment(experiment, settings, task), data, test)
    summary = local_cluster.simulate(config, folder, quiet=as_json, own=own)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    if set(summary.diverged) - set(summary.attackers):
        raise typer.Exit(Diverged.exit_code)


@app.command()
def run(
    file: Annotated[
        Path | None, typer.Option("--config", metavar="NODE.toml", help="The node's own file.")
    ] = None,
    settings: Settings = [],
    insecure: Insecure = False,
    loop: Loop = "auto",
    attack: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Lie to the neighbors (peerpoise show poison)."),
    ] = None,
    attack_set: Annotated[
        list[str], typer.Option(metavar="KEY=V", help="Set one key of the attack.")
    ] = [],
    testing: Annotated[
        bool, typer.Option("--i-am-testing", help="Needed to attack: the federation is my own.")
    ] = False,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", hidden=True, help="Stop when standard input ends: with `up`."),
    ] = False,
    log: Annotated[
        Literal["text", "json"], typer.Option(help="How its lines on standard error look.")
    ] = "text",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No lines but warnings and errors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one daemon until its last round.

    On standard error it says whom it waits for and why, what it measures, who is lost or back, and
    how much of the privacy budget is spent.

    Without --config: $PEERPOISE_CONFIG, ./node.toml, the user's peerpoise/node.toml,
    /etc/peerpoise/node.toml.
    """
    file = file or _node_file()
    settings = [
        *settings,
        *([f"attack.name={attack}"] if attack else []),
        *(f"attack.{it}" for it in attack_set),
    ]
    from node.cli import doctor
    from node.daemon import bootstrap

    doctor.refuse_clashes()
    try:
        code = bootstrap.serve(
            file,
            settings=settings,
            loop=loop,
            insecure=insecure,
            testing=testing,
            until_eof=until_eof,
            log=log,
            quiet=quiet,
        )
    except TaskError as error:
        if until_eof or sys.stderr.isatty():
            raise
        raise TaskError(error.brief) from error  # a log may be passed on; words may be private
    if code == BudgetSpent.exit_code:
        typer.echo(
            "peerpoise: The privacy budget of the data is spent: nothing more may be released.",
            err=True,
        )
    if as_json:
        from node.config import NodeConfig, load

        summary = file.parent / load(NodeConfig, [file], settings).folder / "summary.json"
        print_json(
            json.loads(summary.read_text(encoding="utf-8"))
            if summary.exists()
            else {"exit_code": code}
        )
    raise typer.Exit(code)


@app.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|./FOLDER]", help="Node, or its folder; all of this user if left out."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it until interrupted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what each daemon does and waits for.

    Round, phase, which neighbors it waits for, since when and until when, and the ε of the run and
    of the data's lifetime.
    """
    from node.observability import terminal

    terminal.status(name, watch=watch, as_json=as_json)


@app.command()
def health(
    folder: Annotated[
        Path | None, typer.Argument(help="A node's folder, if it answers there.")
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="It must also be running rounds, as for /-/ready.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether the daemon is alive: exit code 0 if it answers, 1 if not. For health checks of
    containers.

    If this user has several daemons, each has to answer.
    """
    from node.cli import health as probe

    states = {each["node"]: each["state"] for each in probe.check(ready=ready, folder=folder)}
    if as_json:
        print_json(states, indent=None)
    else:
        typer.echo("\n".join(f"{name}: {state}" for name, state in states.items()))


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms.

    With their papers, and as "reconstruction" what these leave open, or what was not at hand of
    them, as it is done here. --json adds deviations and what is not covered.
    """
    from node.cli import algorithms

    entries = algorithms.algorithms()
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        typer.echo(
            f"{entry['name']:<14} {entry['summary']}"
            + (f" ({entry['paper']})" if entry["paper"] else "")
        )
        for mark in [] if entry["second_name_of"] else entry["reconstructions"]:
            typer.echo(f"{'':<14} reconstruction: {mark}")


@app.command()
def export(
    folder: Run,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE.safetensors|FILE.onnx|FOLDER",
            help="File to write; of a language model also a folder that transformers reads.",
        ),
    ],
    form: Annotated[
        Literal["safetensors", "onnx", "folder"] | None,
        typer.Option("--format", help="What to write (default: as --out ends)."),
    ] = None,
    node: Node = None,
    average: Average = False,
    as_json: Json = False,
) -> None:
    """Copy a trained model out of a run folder."""
    from node.experiments import run_folder

    model = run_folder.model_file(folder, node, average)
    digest, card = run_folder.export(folder, model, out, form)
    if as_json:
        print_json({"file": str(out), "params_digest": digest}, indent=None)
    else:
        typer.echo(f"{out}  sha256 {digest}")
        if card:
            typer.echo(f"{card}  its model card")


@app.command("continue")
def continue_run(
    folder: Run,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.toml", help="File to write.")] = Path(
        "next.toml"
    ),
    settings: Settings = [],
    node: Node = None,
    average: Average = False,
    as_json: Json = False,
) -> None:
    """Write the file of a second run, which starts from the model of this one.

    It has the settings of the first but for --set, for up, simulate or pack --federation.
    """
    from node.experiments import continued, run_folder

    continued.write(folder, run_folder.model_file(folder, node, average), out, settings)
    start = out.with_suffix(".safetensors")
    if as_json:
        print_json({"file": str(out), "start": str(start)}, indent=None)
    else:
        typer.echo(f"{out} starts from {start.name}, which lies beside it.")


@app.command("eval")
def evaluate(
    folder: Run, node: Node = None, average: Average = False, as_json: Json = False
) -> None:
    """Evaluate a trained model on the public test set."""
    from node.experiments import run_folder

    metrics = run_folder.evaluate(folder, run_folder.model_file(folder, node, average))
    if as_json:
        print_json(
            {key: value if isfinite(value) else None for key, value in metrics.items()}, indent=None
        )
    else:
        typer.echo(
            "\n".join(
                f"{key} {value:.4f}" if isfinite(value) else f"{key} n/a"
                for key, value in metrics.items()
            )
        )


def _experiment(file: Path, settings: list[str], task: str | None = None) -> Any:
    from node.config import ExperimentConfig, load

    return load(ExperimentConfig, [file], [*settings, f"task.name={task}"] if task else settings)


def _node_file() -> Path:
    from platformdirs import site_config_path, user_config_path

    if named := os.environ.get("PEERPOISE_CONFIG"):
        return Path(named)
    places = [
        Path("node.toml"),
        Path("/etc/peerpoise/node.toml"),
        site_config_path("peerpoise") / "node.toml",
    ]
    with suppress(RuntimeError):  # this user has no home folder
        places.insert(1, user_config_path("peerpoise") / "node.toml")
    for place in places:
        if place.exists():
            return place
    raise ConfigurationError(
        f"There is no node file; name one with --config, or put it at {places[0]} or {places[1]}."
    )
