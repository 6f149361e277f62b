"""The commands `peerpoise ca` and `peerpoise roster`: who belongs to a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import Json
from node.observability.output import print_json

ca = typer.Typer(help="The federation's certificate authority.", no_args_is_help=True)
roster = typer.Typer(help="The signed list of members.", no_args_is_help=True)


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
    out: Annotated[Path, typer.Option("--out", help="Folder for node.key, node.pem and ca.pem.")],
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


def _print_fields(fields: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        typer.echo("\n".join(f"{key:<12} {value}" for key, value in fields.items()))
