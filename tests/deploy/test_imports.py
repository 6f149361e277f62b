"""What tests of several files share is in tests/kit: no test file imports another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that this code imports."""
    for part in ast.walk(tree):
        match part:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module)):
                yield module


def test_no_test_imports_another() -> None:
    files = sorted(TESTS.rglob("*.py"))
    names = {file.stem for file in files if file.stem.startswith(("test_", "conftest"))}
    assert len(names) > 100
    imports = [
        (file.name, module)
        for file in files
        for module in imported(ast.parse(file.read_bytes()))
        if module.partition(".")[0] in names | {"tests"}
    ]
    assert imports == []
