"""What of this program a trial's figures depend on: the code that `simulate` reaches, and the
algorithm's own file.

Only what runs counts. Comments, docstrings, annotations, layout and the text of errors do not;
neither do the names of our modules, functions, fields and variables: moving a file or renaming a
function consistently voids no result. Algorithms and tasks are named by strings in their tables:
the file of another one is not in a trial's version.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from node.algorithms import ALGORITHMS, NOISED
from node.encoding import Json
from node.tasks import TASKS

START = "node.experiments.in_process"
SHOWN = frozenset(
    f"node.{name}"
    for name in (
        "algorithms",
        "config",
        "experiments.run_folder",
        "figures",
        "experiments.sweep",
        "records.checkpoint",
        "records.journal",
        "records.summary",
        "tasks",
    )
)
"""What keeps, shows or checks, is in a trial's configuration anyway, or is a table of what is
loaded by name.
"""
OURS = re.compile(r"(node|peer)(\.\w+)*")
ENTRY = re.compile(r"((?:node|peer)(?:\.\w+)+):\w+")
"""module:name, as the literal tables have it."""


@cache
def version(algorithm: str, task: str = "classification") -> str:
    """Twelve hex digits that change when code changes on which the figures of such runs depend."""
    entries = ALGORITHMS.get(NOISED.get(algorithm, algorithm), ""), TASKS.get(task, "")
    modules = reached(START, *(entry.partition(":")[0] for entry in entries))
    return digest(_tree(module) for module in modules)[:12]


def of(configuration: Json) -> str:
    """`version` of a trial with this configuration."""
    return version(configuration["algorithm"]["name"], configuration["task"]["name"])


def digest(modules: Iterable[ast.Module]) -> str:
    """SHA-256 of what these modules do, whatever they and the names in them are called.

    Variables of a function are numbered as they come in it; all other names of ours over all
    modules, so that a call of another function of ours is seen. Modules come in the order of their
    digests by themselves.
    """
    trees = [_Meaning().visit(module) for module in modules]
    ours = frozenset[str]().union(*map(_bound, trees))
    trees.sort(key=lambda tree: _Numbering(ours).of([tree]))
    return _Numbering(ours).of(trees)


def reached(*start: str) -> set[str]:
    """The modules of node and peer that these import, and they in turn, without SHOWN."""
    modules: set[str] = set()
    left = [module for module in start if module]
    while left:
        module = left.pop()
        if module not in modules and not _shown(module) and _file(module):
            modules.add(module)
            left += _imports(module)
    return modules


def _shown(module: str) -> bool:
    return module in SHOWN or module.startswith("node.config.")


@cache
def _imports(module: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(origin), names=aliases):
                names |= {origin, *(f"{origin}.{alias.name}" for alias in aliases)}
            case ast.Constant(value=str(text)) if entry := ENTRY.fullmatch(text):
                names.add(entry[1])
    return frozenset(name for name in names if "." in name and OURS.fullmatch(name))


class _Meaning(ast.NodeTransformer):
    """Drops what does not run, or only speaks to people and type checkers."""

    def __init__(self) -> None:
        self.fields: set[ast.AnnAssign] = set()
        """Of classes."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
        return super().visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """The types of its fields may run (pydantic, dataclasses); no other annotation does."""
        self.fields |= {line for line in node.body if isinstance(line, ast.AnnAssign)}
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        node.returns = None
        typed = any(_is_named(decorator, "overload") for decorator in node.decorator_list)
        return None if typed else self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node in self.fields:
            return self.generic_visit(node)
        if node.value is None or _is_named(node.annotation, "TypeAlias"):
            return None
        return self.generic_visit(ast.Assign([node.target], node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        made = node.value
        is_variable = isinstance(made, ast.Call) and _is_named(made.func, "TypeVar")
        return None if is_variable else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = ""
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and ENTRY.fullmatch(node.value):
            node.value = ""
        return node


def _is_named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _bound(tree: ast.Module) -> frozenset[str]:
    """The names that this module defines, assigns, or imports from our own modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.arg():
                names.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
            case ast.ImportFrom(module=str(origin)) if OURS.fullmatch(origin):
                names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)


class _Numbering:
    """Syntax trees as text in which our names are numbers and our imports are missing."""

    def __init__(self, ours: frozenset[str]) -> None:
        self.ours = ours
        self.numbers: dict[str, int] = {}
        self.variables: list[dict[str, int]] = []
        """Of the functions around, the innermost last."""

    def of(self, trees: Iterable[ast.Module]) -> str:
        return hashlib.sha256(
            "".join(part for tree in trees for part in self._parts(tree)).encode()
        ).hexdigest()

    def _parts(self, value: object) -> Iterator[str]:
        match value:
            case ast.Import() | ast.ImportFrom() if _imports_ours(value):
                pass
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self.variables.append(
                    {name: number for number, name in enumerate(_variables(value))}
                )
                yield from self._fields(value)
                self.variables.pop()
            case ast.AST():
                yield from self._fields(value)
            case list():
                for child in value:
                    yield from self._parts(child)
                yield ";"
            case _:
                yield f" {value!r}"

    def _fields(self, node: ast.AST) -> Iterator[str]:
        yield f"({type(node).__name__}"
        for name, child in ast.iter_fields(node):
            is_name = name in ("id", "attr", "arg", "name") and isinstance(child, str)
            yield from [self._name(node, child)] if is_name else self._parts(child)
        yield ")"

    def _name(self, node: ast.AST, name: str) -> str:
        if isinstance(node, ast.Name | ast.arg):
            for depth, variables in enumerate(reversed(self.variables)):
                if name in variables:
                    return f" {depth}.{variables[name]}"
        return (
            f" #{self.numbers.setdefault(name, len(self.numbers))}"
            if name in self.ours
            else f" {name}"
        )


def _variables(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """Arguments and what is assigned in it, each once, in order."""
    nodes = list(ast.walk(function))
    arguments = [node.arg for node in nodes if isinstance(node, ast.arg)]
    assigned = [
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return list(dict.fromkeys([*arguments, *assigned]))


def _imports_ours(statement: ast.Import | ast.ImportFrom) -> bool:
    origin = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    return origin is not None and OURS.fullmatch(origin) is not None


def _is_text(line: ast.stmt) -> bool:
    """A docstring, of a field too."""
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


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
