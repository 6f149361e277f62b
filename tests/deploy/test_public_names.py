"""`peerpoise` exports what a task author needs (docs/own-task.md), and loads it when it is used."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import peerpoise

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")


def test_every_public_name_is_the_one_of_its_module() -> None:
    exported = {name: module for module, names in peerpoise.EXPORTS.items() for name in names}
    assert sorted(exported) == sorted(peerpoise.__all__)
    for name, module in exported.items():
        assert getattr(peerpoise, name) is getattr(import_module(module), name)


def test_another_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Trainer' from 'peerpoise'"):
        from peerpoise import Trainer  # noqa: F401


def test_importing_it_loads_nothing_else() -> None:
    code = (
        "import sys, peerpoise; print([m for m in ('torch', 'node', 'peer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_lists_every_public_name_and_imports_no_other() -> None:
    assert {name for name in peerpoise.__all__ if f"`{name}`" not in PAGE} == set()
    imports = re.findall(r"^from (?:peerpoise|node|peer)\S* import .*$", PAGE, re.MULTILINE)
    assert imports
    for line in imports:
        exec(line, {})
        assert line.startswith("from peerpoise import ")


def test_the_wheel_says_that_it_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["peerpoise.py"] == "peerpoise-stubs/__init__.pyi"
    assert all((ROOT / package / "py.typed").exists() for package in ("node", "peer"))


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {peerpoise.__version__}\n" in citation
