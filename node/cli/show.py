"""The commands `show` and `init`: what comes with peerpoise beside its code."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from node.cli.options import Json
from node.observability.output import print_json

app = typer.Typer()

LONGEST = 90
"""Characters of a title."""


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A file; its ending may be left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the examples, pages and service files that come with peerpoise, or print one."""
    from node.config import shipped

    if name is not None:
        path = shipped.find(name)
        text = path.read_text(encoding="utf-8")
        if as_json:
            print_json({"name": path.name, "path": str(path), "text": text})
        else:
            typer.echo(text, nl=False)
        return
    titles = {each: _title(path) for each, path in shipped.files().items()}
    if as_json:
        print_json(
            {each: {"path": str(shipped.files()[each]), "title": titles[each]} for each in titles}
        )
        return
    width = max(map(len, titles))
    for each, title in titles.items():
        typer.echo(f"{each:{width}}  {title}".rstrip())


@app.command()
def init(
    kind: Annotated[
        str, typer.Argument(metavar="table|images|language|own", help="What is to be learned.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to make (default KIND).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented run file to start from, with sample data or the skeleton of a task."""
    from node.config import shipped
    from peer import files
    from peer.errors import ConfigurationError

    folder = shipped.templates().get(kind)
    if folder is None:
        raise ConfigurationError(
            f"There is no start of the kind {kind!r}; choose one of "
            f"{', '.join(shipped.templates())}."
        )
    made = files.new_dir(out or Path(kind))
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        (made / name).write_bytes((folder / name).read_bytes())
    if as_json:
        print_json({"folder": str(made), "files": names})
    else:
        typer.echo(f"{made}: {', '.join(names)}. Now: cd {made} && peerpoise up run.toml")


def _title(path: Path) -> str:
    """A page's heading; of other files the first sentence of the comment they begin with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    sentence = " ".join(comment).split(". ")[0].split(": ")[0].rstrip(".")
    return shorten(sentence, LONGEST, placeholder=" …")
