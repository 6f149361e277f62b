"""The commands `peerpoise config`: configuration before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from node.cli.options import Json, Settings
from node.observability.output import print_json
from peer.errors import ConfigurationError

app = typer.Typer(help="Look at configuration before it runs.", no_args_is_help=True)


@app.command("show")
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


@app.command("check")
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

        findings = doctor_node.examine(file, settings, dial=False)
        faults = [finding for finding in findings if finding.level == "fault"]
        if faults:
            for finding in faults:
                typer.echo(f"{finding.what}: {finding.text.rstrip('.')}; {finding.do}.", err=True)
            if as_json:
                texts = [finding.text for finding in faults]
                print_json({"file": str(file), "ok": False, "faults": texts})
            raise typer.Exit(ConfigurationError.exit_code)
    if isinstance(loaded, schema.ExperimentConfig):
        from node.experiments.resolve import participants, resolve

        resolve(loaded, participants(loaded)).checked()
    if as_json:
        print_json({"file": str(file), "ok": True}, indent=None)
    else:
        typer.echo(f"{file} is in order.")


@app.command("schema")
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
