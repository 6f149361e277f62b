"""What of this program a cell's figures depend on: the code that `simulate` reaches, and the algorithm's own file.

Sources are compared without comments, docstrings and layout, so that only what runs counts. Algorithms and tasks are
named by strings in their tables: the file of another one is not in a cell's version, and a new one makes no cell void.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from node.algorithms import ALGORITHMS, NOISED
from node.tasks import TASKS

START = "node.experiment"
SHOWN = frozenset(
    f"node.{name}"
    for name in (
        "algorithms", "checkpoint", "config", "disk", "edges", "journal", "results", "summary", "sweep", "tasks"
    )
)  # fmt: skip
"""What keeps, shows or checks, is in a cell's configuration anyway, or is a table of what is loaded by name."""
OURS = re.compile(r"(node|peer)(\.\w+)+")
ENTRY = re.compile(r"((?:node|peer)(?:\.\w+)+):\w+")
"""module:name, as the literal tables have it."""


@cache
def version(algorithm: str, task: str = "classification") -> str:
    """Twelve hex digits that change when code changes on which the figures of such runs depend."""
    own = ALGORITHMS.get(NOISED.get(algorithm, algorithm), ""), TASKS.get(task, "")
    found = hashlib.sha256()
    for module in sorted(reached(START, *(it.partition(":")[0] for it in own))):
        found.update(f"{module}\0{_meaning(module)}\0".encode())
    return found.hexdigest()[:12]


def of(configuration: Mapping[str, Any]) -> str:
    """`version` of a cell with this configuration."""
    return version(configuration["algorithm"]["name"], configuration["task"]["name"])


def reached(*start: str) -> set[str]:
    """The modules of node and peer that these import, and they in turn, without SHOWN."""
    found: set[str] = set()
    left = [module for module in start if module]
    while left:
        module = left.pop()
        if module not in found and not _shown(module) and _file(module):
            found.add(module)
            left += _imports(module)
    return found


def _shown(module: str) -> bool:
    return module in SHOWN or module.startswith("node.config.")


@cache
def _imports(module: str) -> frozenset[str]:
    found: set[str] = set()
    for it in ast.walk(_tree(module)):
        match it:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(origin), names=names):
                found |= {origin, *(f"{origin}.{name.name}" for name in names)}
            case ast.Constant(value=str(text)) if entry := ENTRY.fullmatch(text):
                found.add(entry[1])
    return frozenset(name for name in found if OURS.fullmatch(name))


@cache
def _meaning(module: str) -> str:
    tree = _tree(module)
    for it in ast.walk(tree):
        if isinstance(it, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            it.body = [line for line in it.body if not _is_text(line)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    """A docstring, of a field too."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _file(module: str) -> Path | None:
    """None: there is no such module (a name that was imported from one)."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
