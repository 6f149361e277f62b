"""The commands `peerpoise request`, `pack`, `ca` and `roster`: who belongs to a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import Json, Settings
from node.observability.output import print_json

app = typer.Typer()
ca = typer.Typer(help="The federation's certificate authority.", no_args_is_help=True)
roster = typer.Typer(help="The signed list of members.", no_args_is_help=True)


@app.command()
def request(
    file: Annotated[
        Path, typer.Argument(metavar="REQUEST.csr", help="File to write, for whoever packs.")
    ],
    key: Annotated[
        Path | None,
        typer.Option("--key", help="The key to make (default $XDG_STATE_HOME/peerpoise/node.key)."),
    ] = None,
    same_key: Annotated[
        bool, typer.Option("--same-key", help="Make no key: the request is for the one there is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make this host's key, and the request with which it is let into a federation.

    The key stays on this host. Send the request to whoever runs peerpoise pack --request.
    """
    from node.config.node import host_key
    from peer.identity import requests

    place = key or host_key()
    own = requests.create(place, file, same_key=same_key)
    _print_fields({"id": own, "key": str(place), "request": str(file)}, as_json)


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
    test: Annotated[
        list[str], typer.Option("--test", metavar="NAME:PATH", help="A host's private test set.")
    ] = [],
    requested: Annotated[
        list[str],
        typer.Option(
            "--request", metavar="NAME=REQUEST.csr", help="A host that has its key (repeatable)."
        ),
    ] = [],
    federation: Annotated[
        Path | None,
        typer.Option(
            "--federation",
            metavar="FOLDER",
            help="The CA and members of an earlier run (default: new ones, OUT/federation).",
        ),
    ] = None,
    settings: Settings = [],
    as_json: Json = False,
) -> None:
    """Prepare real hosts: one folder each, ready to start."""
    from node.config import ExperimentConfig, load
    from node.experiments import hosts

    packed = hosts.pack(
        load(ExperimentConfig, [file], settings),
        host,
        data,
        out,
        discovery,
        tests=test,
        requested=requested,
        federation=federation,
    )
    if as_json:
        print_json(packed)
        return
    typer.echo(
        "Copy each folder to its host and there run: peerpoise run --config node.toml\nrun_id "
        f"{packed['run_id']}"
    )
    for name, home in packed["hosts"].items():
        typer.echo(f"  {name}  {home}")
    if packed["asked"]:
        typer.echo(f"Each owner of data is asked: {packed['asked']}")
    typer.echo(
        f"Keep {packed['federation']} to yourself: its key can let any machine into this "
        "federation."
    )


@ca.command("create")
def ca_create(
    folder: Annotated[Path, typer.Argument(help="Folder to make, for ca.key and ca.pem.")],
    as_json: Json = False,
) -> None:
    """Make a federation's certificate authority."""
    from node.experiments import federation

    _print_fields(federation.create_authority(folder), as_json)


@ca.command("issue")
def ca_issue(
    folder: Annotated[Path, typer.Argument(help="The CA's folder.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for node.pem, ca.pem and, without a request, node.key."),
    ],
    request: Annotated[
        Path | None,
        typer.Option("--request", help="What peerpoise request wrote (PEM); no key is made."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days of validity.")] = 365,
    as_json: Json = False,
) -> None:
    """Issue a node's certificate: with a fresh key, or for a request, whose key stays on its
    host.
    """
    from node.experiments import federation

    _print_fields(federation.issue(folder, out, request, days), as_json)


@ca.command("renew")
def ca_renew(
    folder: Annotated[Path, typer.Argument(metavar="FEDERATION", help="The CA's folder.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A host of an earlier pack.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write (default NAME.pem).")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days of validity.")] = 365,
    as_json: Json = False,
) -> None:
    """Renew a host's certificate, for the key that it has.

    Put the file in the place of node.pem on that host; its daemon reads it within seconds.
    """
    from node.experiments import federation

    _print_fields(federation.renew(folder, name, out or Path(f"{name}.pem"), days), as_json)


@ca.command("show")
def ca_show(
    file: Annotated[
        Path, typer.Argument(help="A certificate (PEM), or a folder with node.pem or ca.pem.")
    ],
    as_json: Json = False,
) -> None:
    """Show a certificate: node id, validity, issuer."""
    from node.experiments import federation

    _print_fields(federation.show_certificate(file), as_json)


@roster.command("show")
def roster_show(
    file: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with run.toml and roster.json.")
    ],
    as_json: Json = False,
) -> None:
    """Show a roster: its version, its members, and those removed."""
    from node.experiments import federation

    _print_fields(federation.show_roster(file), as_json)


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
    from node.experiments import federation

    _print_fields(
        federation.remove_members(folder, names, authority or folder / "federation"), as_json
    )


def _print_fields(fields: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        typer.echo("\n".join(f"{key:<12} {value}" for key, value in fields.items()))
