"""The command `predict`: an exported model at work."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import Json
from node.observability.output import print_json
from peer import files

app = typer.Typer()


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.safetensors", help="What export wrote, of a table.")
    ],
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS.csv", help="A table, with or without labels.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv", help="File to write (else printed).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Apply an exported model to the rows of a table, one line a row."""
    from node.data.bad_rows import counted
    from node.learning import use

    table, bad = use.predict(use.load(model), rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    if out is not None:
        files.atomic_write(out, text.getvalue().encode())
    if as_json:
        problems = {str(row + 1): why.kind for row, why in sorted(bad.items())}
        print_json({"header": table[0], "rows": table[1:], "bad": problems})
    elif out is None:
        typer.echo(text.getvalue(), nl=False)
    if bad:
        typer.echo(
            f"warning: {len(bad)} of {len(table) - 1} rows have no prediction: {counted(bad)}.",
            err=True,
        )
