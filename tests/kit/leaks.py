"""docs/leaks.md, read: what leaves the owner of the data, by name, and of which class it is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from kit import ROOT

PAGE = ROOT / "docs" / "leaks.md"
CLASSES = {"public", "derived", "off", "side", "own", "none"}
Names = Mapping[str, Mapping[str, str]]
"""Message, event or the like -> name -> class."""


@cache
def listed(section: str) -> Names:
    """The table of a section."""
    text = PAGE.read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    names: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for of, name, kind in _rows(body):
        assert kind in CLASSES, f"{section}: {of}: {kind}"
        assert name not in names[of], f"{section}: {of}: {name} is there twice"
        names[of][name] = kind
    return names


def _rows(body: str) -> Iterator[tuple[str, str, str]]:
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and "`" in cells[1]:
            yield from ((cells[0], name, cells[2]) for name in re.findall(r"`([^`]+)`", cells[1]))


def unlisted_files(paths: Iterable[Path]) -> set[str]:
    """Names of files that are not in the page's table."""
    patterns = [name for names in listed("Files").values() for name in names]
    found = {path.name for path in paths}
    return {name for name in found if not any(fnmatch(name, each) for each in patterns)}
