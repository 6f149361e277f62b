"""Options and output that several commands share. As light as the command line itself."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="A.B=V", help="Set one key of the file (repeatable); empty V removes it.")
]


def print_json(value: Any) -> None:
    """In ASCII: programs read it, whatever the locale."""
    typer.echo(json.dumps(value, indent=2))
