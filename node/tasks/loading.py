"""Where the code of somebody's own task is: a module that Python imports, or a file."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from itertools import accumulate
from pathlib import Path
from types import ModuleType

from node.config.task import OWN_PREFIX
from peer.errors import ConfigurationError


def is_file(name: str) -> bool:
    """Does a task's name say a file, as FILE.py:function?"""
    place = name.rpartition(":")[0]
    return place.endswith(".py") or "/" in place


def absolute(name: str) -> str:
    """A name that says a file, written from the root, so that it means the same in every working
    folder.
    """
    place, _, function = name.rpartition(":")
    return f"{Path(place).expanduser().absolute()}:{function}" if is_file(name) else name


def load(place: str, name: str) -> ModuleType:
    """The module or file `place` of the task `name`; what its own code raises is raised.

    Raises:
        ConfigurationError: there is no such module or file.
    """
    if is_file(name):
        return _from_file(Path(place).expanduser().absolute(), name)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigurationError(
            f"task.name = {name!r} names no module; write package.module:function, or "
            "FILE.py:function."
        )
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        if not f"{place}.".startswith(f"{error.name}."):
            raise  # a package that the task's own code asks for
        why = f"{error}.{_hint(place, name.rpartition(':')[2])}"
    raise ConfigurationError(f"task.name = {name!r} can't be imported: {why}")


def source_digest(names: Iterable[str]) -> bytes:
    """SHA-256 of the files that these names of own tasks and families lead to; empty: none does.
    Not of what those files import.
    """
    sources = [source for name in names if (source := _source(name))]
    return hashlib.sha256(b"\0".join(sources)).digest() if sources else b""


def _source(name: str) -> bytes:
    """As Python reads it, whatever ends its lines; empty where it is no file."""
    place = name.removeprefix(OWN_PREFIX)
    place = place if place.endswith(".py") else place.rpartition(":")[0] or place
    file = place if place.endswith(".py") or "/" in place else _file_of(place)
    try:
        return Path(file).expanduser().read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return b""


def _file_of(module: str) -> str:
    """Nothing is imported: packages around a family run in a process that may only compute."""
    spec = sys.modules[module].__spec__ if module in sys.modules else None
    path: Sequence[str] | None = None
    for name in () if spec else accumulate(module.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            break
        path = spec.submodule_search_locations
    return (spec.origin if spec else None) or ""


def _hint(module: str, function: str) -> str:
    """What to write where the module lies in the working folder, in which Python does not look."""
    file = Path(*module.split(".")).with_suffix(".py")
    if not file.exists():
        return ""
    return (
        f" There is {file} in this folder: set PYTHONPATH=. and start again; or, for up, write "
        f"{file}:{function}."
    )


def _from_file(file: Path, name: str) -> ModuleType:
    """The file as a module, once per process; what lies beside it can be imported, as of a
    script.
    """
    if not file.is_file():
        raise ConfigurationError(f"task.name = {name!r}: there is no file {file}.")
    title = file.stem if _is_at(sys.modules.get(file.stem), file) else str(file)
    if title in sys.modules and _is_at(sys.modules[title], file):
        return sys.modules[title]
    spec = spec_from_file_location(title, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(
            f"task.name = {name!r}: {file} is no Python file; its name must end in .py."
        )
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = sys.modules[title] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[title]
        raise
    return module


def _is_at(module: ModuleType | None, file: Path) -> bool:
    """Is it this file's, or nobody's?"""
    return module is None or getattr(module, "__file__", None) == str(file)
