"""A task named by its file, and names that Python can't import though the file is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from node import tasks
from node.config import RunConfig
from node.tasks.loading import absolute
from peer.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "own-task.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with my_task.py and parts of it beside; Python does not look there."""
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    folder = tmp_path / "my work"
    (folder / "pack").mkdir(parents=True)
    (folder / "my_slope.py").write_text(code, encoding="utf-8")
    (folder / "my_task.py").write_text("from my_slope import make_task\n", encoding="utf-8")
    (folder / "pack" / "inner.py").write_text(code, encoding="utf-8")
    (folder / "json.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("my_task", "my_slope", "inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def made(name: str) -> int:
    run = RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"name": name}})
    return tasks.make(run, np.arange(7)).num_examples


@pytest.mark.parametrize(
    "name", ["my_task.py", "./my_task.py", "pack/inner.py", "./pack/../my_task.py"]
)
def test_a_file_is_a_task(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(f"{name}:make_task") == 7
    whole = absolute(f"{name}:make_task")
    monkeypatch.chdir("/")
    assert made(whole) == 7
    assert whole.startswith("/")


def test_a_file_with_the_name_of_a_module_hides_nothing(here: Path) -> None:
    assert made("json.py:make_task") == 7
    assert sys.modules["json"] is json


def test_a_file_is_read_once(here: Path) -> None:
    with (here / "my_task.py").open("a", encoding="utf-8") as file:
        file.write("import builtins; builtins.my_reads = getattr(builtins, 'my_reads', 0) + 1\n")
    import builtins

    assert made("my_task.py:make_task") == made("./my_task.py:make_task") == 7
    assert builtins.my_reads == 1  # type: ignore[attr-defined]
    del builtins.my_reads  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "my_task:make_task",
            r"There is my_task\.py in this folder: set PYTHONPATH=\. .*; or, for up, write my_task\.py:make_task",
        ),
        (
            "pack.inner:make_task",
            r"There is pack/inner\.py in this folder: .* write pack/inner\.py:make_task",
        ),
        ("nothing:make_task", r"can't be imported: No module named 'nothing'\.$"),
        ("nothing.py:make_task", r"there is no file .*/my work/nothing\.py\.$"),
        ("./pack:make_task", r"there is no file .*/my work/pack\.$"),
        ("my_task.py:nothing", r"my_task\.py has no function 'nothing'"),
        ("my_task.py", "your own as package.module:function"),
        (
            ".my_task:make_task",
            "names no module; write package.module:function, or FILE.py:function",
        ),
        ("my task:make_task", "names no module"),
        (":make_task", "names no module"),
        ("my_task:", "names no function"),
    ],
)
def test_what_can_not_be_imported_is_a_sentence(here: Path, name: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        made(name)
