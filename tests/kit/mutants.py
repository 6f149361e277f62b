"""Runs tests against broken versions of a module: `python -m kit.mutants` in `tests`.

Standard input is a JSON object, name -> [module, [[old text, new text], …], [test, …]]; an empty
module is broken nowhere. Each is a process forked from this one, in which the module's source is
patched as it is imported, so no file changes. Standard output is a JSON object, name -> pytest's
exit code; what pytest said goes to standard error.

What is broken may not have been imported before: this has to be a start of its own, not a fork of
the fork server.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PRELOADED = ("cryptography.hazmat.primitives.ciphers", "node.config", "node.task", "torch.func")
"""What takes long to import, and none of it is ever broken here."""
CRASHED = 70
"""None of pytest's codes."""
Patches = Sequence[tuple[str, str]]


class Patched(SourceFileLoader):
    """Compiles another text than the file's."""

    patches: Patches

    def get_code(self, fullname: str) -> CodeType:
        text = Path(self.path).read_text(encoding="utf-8")
        for old, new in self.patches:
            if text.count(old) != 1:
                raise LookupError(f"{fullname} has this {text.count(old)} times, not once: {old}")
            text = text.replace(old, new)
        return compile(text, self.path, "exec")


class Finder(MetaPathFinder):
    """Finds one module, and gives it a patched source."""

    def __init__(self, module: str, patches: Patches) -> None:
        self.module, self.patches = module, patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        loader = Patched(name, str(file))
        loader.patches = self.patches
        return spec_from_file_location(name, file, loader=loader)


def broken(module: str, patches: Patches, tests: Sequence[str]) -> int:
    """pytest's exit code, in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = CRASHED
    try:
        code = _tested(module, patches, tests)
    finally:
        os._exit(code)


def _tested(module: str, patches: Patches, tests: Sequence[str]) -> int:
    os.dup2(2, 1)
    if module:
        assert module not in sys.modules
        sys.meta_path.insert(0, Finder(module, patches))
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=line")
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    return code


def main() -> None:
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    for name in PRELOADED:
        importlib.import_module(name)
    torch = sys.modules["torch"]
    torch.func.vmap(torch.func.grad(torch.sum))(torch.ones(2, 2))  # the first time takes a second
    mutants = json.load(sys.stdin)
    print(json.dumps({name: broken(*mutant) for name, mutant in mutants.items()}))


if __name__ == "__main__":
    main()
