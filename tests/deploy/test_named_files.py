"""No sentence of the program names a file that is not there: what it says of docs/ and deploy/ is
in the wheel, under the name by which `peerpoise show` prints it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit import ROOT
from node.config import shipped

NAMED = re.compile(r"\b(?:docs|deploy)/[\w./-]*\w")
SHOWN = re.compile(r"peerpoise show ([a-z][\w.-]*\w)")
PATTERNS = Path(shipped.__file__)
"""Names no files but patterns of them."""
PROGRAM = {*ROOT.glob("node/**/*.py"), *ROOT.glob("peer/**/*.py"), ROOT / "peerpoise.py"}
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
SHIPPED = BUILD["build"]["targets"]["wheel"]["force-include"]


def strings(file: Path) -> Iterator[str]:
    """All text in a file, adjacent parts of f-strings apart; docstrings of settings and commands
    are shown to people, too.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named(pattern: re.Pattern[str]) -> set[tuple[str, str]]:
    """(what is named, where)."""
    return {
        (name, str(file.relative_to(ROOT)))
        for file in PROGRAM - {PATTERNS}
        for text in strings(file)
        for name in pattern.findall(text)
    }


def is_shipped(name: str) -> bool:
    places = [Path(name), *Path(name).parents]
    return (ROOT / name).exists() and any(str(place) in SHIPPED for place in places)


def test_what_is_named_is_in_the_wheel() -> None:
    assert len(named(NAMED)) > 15, "the program names its pages"
    assert sorted(pair for pair in named(NAMED) if not is_shipped(pair[0])) == []


def test_what_is_to_be_shown_can_be() -> None:
    known = {*shipped.files()} | {Path(name).stem for name in shipped.files()}
    assert len(named(SHOWN)) > 5
    assert sorted(pair for pair in named(SHOWN) if pair[0] not in known) == []


@pytest.mark.parametrize("name", ["docs/" + "nothing.md", "docs/generate.py", "deploy/names.py"])
def test_what_is_not_in_the_wheel_is_noticed(name: str) -> None:
    assert not is_shipped(name)
