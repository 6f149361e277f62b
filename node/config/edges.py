"""A graph from a file: one edge a line, two names and, where W is given, its weight; # starts a
comment.

    n0 n1 0.25      or  n0,n1,0.25       weights for all edges, or for none
    n0 n0 0.5       w_00, which may be left out: the diagonal takes the rest

The edges go into the run file itself: every node has to compute the same W, so they belong to what
its digest covers, and a file beside it would have to travel, and be checked, by itself.
"""

from __future__ import annotations

from pathlib import Path

from node.encoding import NotUtf8, read_text
from peer.errors import ConfigurationError


def inline(run: dict[str, object]) -> None:
    """Reads `topology.file` of a run's values into `topology.edges`, unless those are there.

    Raises:
        ConfigurationError: one sentence that names file and line.
    """
    section = run.get("topology")
    if not isinstance(section, dict) or section.get("edges"):
        return
    if (file := section.get("file")) and isinstance(file, str):
        run["topology"] = {**section, "edges": read(Path(file))}


def read(file: Path) -> list[tuple[str | float, ...]]:
    """The edges of a file, in its order.

    Raises:
        ConfigurationError: as `inline`.
    """
    try:
        lines = read_text(file).splitlines()
    except NotUtf8 as error:
        raise ConfigurationError(f"topology.file: {file} {error}.") from None
    except OSError:
        raise ConfigurationError(
            f"topology.file: {file} can't be read as text; check the path."
        ) from None
    split = [
        (number, line.partition("#")[0].replace(",", " ").split())
        for number, line in enumerate(lines, 1)
    ]
    return [_edge(words, f"{file}, line {number}") for number, words in split if words]


def _edge(words: list[str], place: str) -> tuple[str | float, ...]:
    try:
        if len(words) not in (2, 3):
            raise ValueError
        return (words[0], words[1], *map(float, words[2:]))
    except ValueError:
        line = " ".join(words)
        raise ConfigurationError(
            f"{place}: an edge is two names and perhaps a weight, not {line!r}."
        ) from None
