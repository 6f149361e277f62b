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
Curious = Annotated[
    str,
    typer.Option(metavar="NODE,NODE", help="What these nodes know together: n0,n3."),
]


def names(nodes: str) -> tuple[str, ...]:
    """Of the nodes in "n0,n3", each once."""
    return tuple(sorted({name.strip() for name in nodes.split(",")} - {""}))
