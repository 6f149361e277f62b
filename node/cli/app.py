"""The command line: `peerpoise COMMAND`.

Nothing heavy is imported at the top (the help must come at once): a command imports what it needs
when it runs. Every mistake of a user ends in one sentence on standard error and an exit code of
docs/exit-codes.md; with `--json` also in `{"error": …, "exit_code": …}` on standard output. Any
other exception is a bug of ours: exit code 70.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from node.cli import experiments, inspect, stdio
from node.cli.options import Json, Settings
from node.observability.output import documents_only, print_json, silence, unread
from peer.errors import (
    EXIT_BUG,
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_PIPE,
    BudgetSpent,
    ConfigurationError,
    Diverged,
    PeerpoiseError,
    StorageError,
    TaskError,
    TemporaryFailure,
)

app = typer.Typer(
    help="Machines that learn together without a server: private cross-gradients between peers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ca = typer.Typer(help="The federation's certificate authority.", no_args_is_help=True)
roster = typer.Typer(help="The signed list of members.", no_args_is_help=True)
config = typer.Typer(help="Look at configuration before it runs.", no_args_is_help=True)
app.add_typer(ca, name="ca")
app.add_typer(roster, name="roster")
app.add_typer(config, name="config")
app.add_typer(inspect.app)
app.add_typer(experiments.app)

Experiment = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.toml", help="A run and [experiment].")
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
    from node.experiments import local_cluster

    doctor.refuse_clashes()
    summary, code = local_cluster.up(
        _experiment(experiment, settings, task),
        folder,
        insecure=insecure,
        loop=loop,
        baseline=baseline,
        quiet=as_json,
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
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Run an experiment in one process, with the same bits."""
    from node.experiments import local_cluster

    summary = local_cluster.simulate(_experiment(experiment, settings, task), folder, quiet=as_json)
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
        str | None, typer.Option(metavar="NAME", help="Lie to the neighbors (docs/poison.md).")
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
    as_json: Json = False,
) -> None:
    """Run one daemon until its last round.

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
    code = bootstrap.serve(
        file, settings=settings, loop=loop, insecure=insecure, testing=testing, until_eof=until_eof
    )
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
def pack(
    file: Annotated[
        Path, typer.Argument(metavar="RUN.toml", help="The run all hosts take part in.")
    ],
    host: Annotated[
        list[str],
        typer.Option("--host", metavar="NAME[=HOST:PORT]", help="One per host (repeatable)."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("packed"),
    data: Annotated[
        list[str], typer.Option("--data", metavar="NAME=DATA:PATH", help="A host's own data.")
    ] = [],
    discovery: Annotated[
        list[str],
        typer.Option(
            "--discovery", metavar="exchange|mdns", help="Finds hosts without an address."
        ),
    ] = [],
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Prepare real hosts: one folder each, ready to start."""
    from node.experiments import provisioning

    packed = provisioning.pack(_experiment(file, settings), host, data, out, discovery)
    if as_json:
        print_json(packed)
        return
    typer.echo(
        f"Copy each folder to its host and there run: peerpoise run --config node.toml\nrun_id {packed['run_id']}"
    )
    for name, home in packed["hosts"].items():
        typer.echo(f"  {name}  {home}")
    typer.echo(
        f"Keep {packed['federation']} to yourself: its key can let any machine into this federation."
    )


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

    found = {each["node"]: each["state"] for each in probe.check(ready=ready, folder=folder)}
    if as_json:
        print_json(found, indent=None)
    else:
        typer.echo("\n".join(f"{name}: {state}" for name, state in found.items()))


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms.

    With their papers and what is reconstructed; --json adds deviations and what is not covered.
    """
    from node.cli import algorithms

    found = algorithms.algorithms()
    if as_json:
        print_json(found)
        return
    for entry in found:
        typer.echo(
            f"{entry['name']:<12} {entry['summary']}"
            + (f" ({entry['paper']})" if entry["paper"] else "")
        )
        for mark in entry["reconstructions"]:
            typer.echo(f"{'':<12} reconstruction: {mark}")


@app.command()
def export(
    folder: Run,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE.safetensors|FOLDER",
            help="File to write; of a language model also a folder that transformers reads.",
        ),
    ],
    node: Node = None,
    average: Average = False,
    as_json: Json = False,
) -> None:
    """Copy a trained model out of a run folder."""
    from node.experiments import run_folder

    digest = run_folder.export(folder, run_folder.model_file(folder, node, average), out)
    if as_json:
        print_json({"file": str(out), "params_digest": digest}, indent=None)
    else:
        typer.echo(f"{out}  sha256 {digest}")


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


@ca.command("create")
def ca_create(
    folder: Annotated[
        Path, typer.Argument(help="Folder to make for the CA's key and certificate.")
    ],
    as_json: Json = False,
) -> None:
    """Make a federation's certificate authority."""
    from node.experiments import provisioning

    _print_fields(provisioning.create_authority(folder), as_json)


@ca.command("issue")
def ca_issue(
    folder: Annotated[Path, typer.Argument(help="The CA's folder.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for key.pem, certificate.pem and ca.pem.")
    ],
    request: Annotated[
        Path | None, typer.Option("--request", help="A signing request (PEM); no key is made.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days of validity.")] = 365,
    as_json: Json = False,
) -> None:
    """Issue a node's certificate: with a fresh key, or for a signing request whose key stays on its
    host.
    """
    from node.experiments import provisioning

    _print_fields(provisioning.issue(folder, out, request, days), as_json)


@ca.command("show")
def ca_show(
    file: Annotated[Path, typer.Argument(help="A certificate (PEM) or a folder that holds one.")],
    as_json: Json = False,
) -> None:
    """Show a certificate: node id, validity, issuer."""
    from node.experiments import provisioning

    _print_fields(provisioning.show_certificate(file), as_json)


@roster.command("show")
def roster_show(
    file: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with run.toml and roster.json.")
    ],
    as_json: Json = False,
) -> None:
    """Show a roster: its version, its members, and those removed."""
    from node.experiments import provisioning

    _print_fields(provisioning.show_roster(file), as_json)


@roster.command("remove")
def roster_remove(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with run.toml and roster.json.")
    ],
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Members to remove, for good.")
    ],
    authority: Annotated[
        Path | None, typer.Option("--ca", help="The CA's folder; federation in FOLDER, by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign the roster's next version, without these members; daemons read it when it is copied over
    theirs.
    """
    from node.experiments import provisioning

    _print_fields(
        provisioning.remove_members(folder, names, authority or folder / "federation"), as_json
    )


@config.command("show")
def config_show(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml")],
    settings: Settings = [],
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value comes from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every value in force: files, environment, --set and defaults together."""
    from node import config as schema

    model = schema.detect_config(file)
    values = schema.flatten(schema.load(model, [file], settings).model_dump(mode="json"))
    origins = schema.origins(model, [file], settings) if origin else {}
    if as_json:
        print_json(
            {k: {"value": v, "origin": origins.get(k, "default")} for k, v in values.items()}
            if origin
            else values
        )
        return
    for key, value in values.items():
        typer.echo(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            + (f"  # {origins.get(key, 'default')}" * origin)
        )


@config.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml")],
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Check a run, experiment or node file without running it; of a node also the files it
    names.
    """
    from node import config as schema

    loaded = schema.load(schema.detect_config(file), [file], settings)
    if isinstance(loaded, schema.NodeConfig):
        from node.cli import doctor_node

        faults = [
            it for it in doctor_node.examine(file, settings, dial=False) if it.level == "fault"
        ]
        if faults:
            for it in faults:
                typer.echo(f"{it.what}: {it.said.rstrip('.')}; {it.do}.", err=True)
            if as_json:
                print_json({"file": str(file), "ok": False, "faults": [it.said for it in faults]})
            raise typer.Exit(ConfigurationError.exit_code)
    if isinstance(loaded, schema.ExperimentConfig):
        from node.experiments.resolve import resolve

        resolve(loaded).checked()
    if as_json:
        print_json({"file": str(file), "ok": True}, indent=None)
    else:
        typer.echo(f"{file} is in order.")


@config.command("schema")
def config_schema(
    which: Annotated[Literal["run", "experiment", "node"], typer.Argument()] = "experiment",
    as_json: Json = False,
) -> None:
    """Print the JSON schema of run.toml, an experiment file or node.toml."""
    from node import config as schema

    models: tuple[type[schema.Section], ...] = (
        schema.RunConfig,
        schema.ExperimentConfig,
        schema.NodeConfig,
    )
    print_json(models[("run", "experiment", "node").index(which)].model_json_schema())


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


def _print_fields(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        typer.echo("\n".join(f"{key:<12} {value}" for key, value in fields.items()))


def main() -> None:
    """Entry point: the one place where exceptions become exit codes."""
    stdio.spell()
    out = sys.stdout
    with documents_only() if "--json" in sys.argv else nullcontext():
        code = _command()
    sys.exit(_flushed(out, code))


def _command() -> int:
    try:
        app(prog_name="peerpoise")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    except TaskError as error:
        return _refuse(_with_traceback(error), error.exit_code)
    except PeerpoiseError as error:
        return _refuse(str(error), error.exit_code)
    except Exception as error:
        return _refuse(*_other(error))
    return EXIT_OK


def _flushed(out: TextIO, code: int) -> int:
    """The exit code when all is written. That the reader of a pipe has gone is worth no word: it
    has read enough.
    """
    try:
        out.flush()
        return EXIT_PIPE if code == EXIT_FAILURE and unread(out) else code
    except OSError as error:
        silence(out)
        if error.errno == errno.EPIPE:
            return EXIT_PIPE
        if code != EXIT_OK:
            return code  # it was said already
        print(f"peerpoise: Standard output can't be written: {error.strerror}.", file=sys.stderr)
        return StorageError.exit_code


def _refuse(sentence: str, code: int) -> int:
    with suppress(OSError):  # nobody reads it, or the disk is full
        print(f"peerpoise: {sentence}", file=sys.stderr)
        if "--json" in sys.argv:
            print_json({"error": sentence, "exit_code": code}, indent=None)
    return code


def _with_traceback(error: TaskError) -> str:
    """The sentence, and where the traceback is, if its own code raised."""
    if error.__cause__ is None:
        return str(error)
    file = _traceback("peerpoise-task-")
    return str(error) + (f" The traceback is in {file}." if file else "")


def _other(error: Exception) -> tuple[str, int]:
    """Sentence and exit code of what we did not raise: too little memory, a full disk, a missing
    package, or a bug.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        said = "This machine has too little memory for this run; choose a smaller model, smaller chunks or fewer nodes."
        return said, TemporaryFailure.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        said = f"{error.filename or 'A file'} can't be written: {error.strerror}; free space or choose another place."
        return said, StorageError.exit_code
    if isinstance(error, RuntimeError) and "home directory" in str(
        error
    ):  # of pathlib, for a path that begins with ~
        return (
            "This user has no home folder: set HOME, or write paths without ~.",
            ConfigurationError.exit_code,
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in (
        "node",
        "peer",
    ):
        said = f"The package {error.name} is missing; install peerpoise with all it needs: pip install peerpoise."
        return said, ConfigurationError.exit_code
    if isinstance(error, UnicodeEncodeError):  # names of files, which may be the run's
        characters = ascii(error.object[error.start : error.end])
        said = f"The characters {characters} don't exist in {error.encoding}; choose another name, or LC_ALL=C.UTF-8."
        return said, ConfigurationError.exit_code
    return _bug(error), EXIT_BUG


def _bug(error: Exception) -> str:
    """One sentence; the traceback goes to a file, or with PEERPOISE_DEBUG=1 to standard error."""
    if file := _traceback("peerpoise-bug-"):
        said = f"This is a bug in peerpoise ({type(error).__name__}); the traceback is in {file}, please report it."
        return said
    return f"This is a bug in peerpoise ({type(error).__name__}: {error}); please report it."


def _traceback(prefix: str) -> str:
    """The file with the traceback; empty where none can be written, or with PEERPOISE_DEBUG=1,
    which prints it.
    """
    import tempfile
    import traceback

    if os.environ.get("PEERPOISE_DEBUG") == "1":
        traceback.print_exc()
        return ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=prefix, suffix=".txt", delete=False
        ) as file:
            traceback.print_exc(file=file)
    except OSError:
        return ""
    return file.name


if __name__ == "__main__":
    main()
