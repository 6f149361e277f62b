"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="A.B=V", help="Set one key of the file (repeatable); empty V removes it."
    ),
]
