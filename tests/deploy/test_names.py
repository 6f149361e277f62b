"""deploy/names.py sees filler names, and leaves the rest alone."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

LINT = runpy.run_path(str(Path(__file__).parents[2] / "deploy" / "names.py"))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("found = 1", ["found"]),
        ("a, told = f()", ["told"]),
        ("self.said: str = x", ["said"]),
        ("if (it := f()): pass", ["it"]),
        ("for it in rows: pass", ["it"]),
        ("def told(how): return how", ["told", "how"]),
        ("lambda it: it", ["it"]),
        ("[it for it in\n rows]", ["it"]),
        ("[found for found in rows]", ["found"]),
        ("[it for it in rows if it]", []),
        ("print(found.it)", []),
    ],
)
def test_bindings_of_filler_names_are_found(source: str, names: list[str]) -> None:
    assert [name for _, name in LINT["bindings"](ast.parse(source))] == names
