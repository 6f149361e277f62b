"""Fails where `node` or `peer` binds a filler name; `make lint` runs it.

A result or function called `found` or `it` tells a reader nothing. `it` is fine in a comprehension
of one line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILLER = {"found", "how", "it", "said", "told"}


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, attribute, argument and function with a filler name."""
    loop_variables = {
        name
        for part in ast.walk(tree)
        if isinstance(part, ast.comprehension) and part.target.lineno == part.iter.end_lineno
        for name in ast.walk(part.target)
        if isinstance(name, ast.Name) and name.id == "it"
    }
    for part in ast.walk(tree):
        if part in loop_variables:
            continue
        match part:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ) if name in FILLER:
                yield part.lineno, name


def main() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{line}: filler name {name}"
        for folder in ("node", "peer")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in bindings(ast.parse(path.read_bytes()))
    ]
    sys.exit("\n".join(places) or None)


if __name__ == "__main__":
    main()
