"""Standard output: with --json it carries a document and nothing else; a pipe may end before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.command import Call
from node.observability.output import documents_only, print_json

CHATTY = """
import os, subprocess, sys
from slope import make_task as quiet

print("loading my task")
os.write(1, b"native code says so\\n")
subprocess.run(["echo", "a program, too"], check=True)
print("at the end", file=sys.__stdout__)

def make_task(run, data):
    print("rows:", data)
    return quiet(run, data)
"""
PAGE = Path(__file__).parents[2] / "docs" / "own-task.md"


def peerpoise_in(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: what its native code prints is its own, too."""
    command = [sys.executable, "-m", "peerpoise", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def task(tmp_path: Path) -> Path:
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "slope.py").write_text(code, encoding="utf-8")
    (tmp_path / "chatty.py").write_text(CHATTY, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (("simulate", "--folder", "out"), ""),
        (("config", "check"), "1"),
        pytest.param(("simulate", "--folder", "out"), "1", marks=pytest.mark.long),
        pytest.param(("config", "check"), "", marks=pytest.mark.long),
    ],
)
def test_what_an_own_task_prints_is_not_in_the_document(
    task: Path, experiment: Path, words: tuple[str, ...], unbuffered: str
) -> None:
    settings = (
        "task.name=chatty.py:make_task",
        "experiment.nodes=2",
        "train.rounds=1",
        "experiment.partition=iid",
    )
    changes = [word for each in settings for word in ("--set", each)]
    done = peerpoise_in(
        task, *words, str(experiment), "--json", *changes, PYTHONUNBUFFERED=unbuffered
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    for line in ("loading my task", "native code says so", "a program, too", "at the end"):
        assert line in done.stderr, line


def test_a_mistake_is_a_document_too(task: Path, experiment: Path) -> None:
    (task / "chatty.py").write_text("print('loading')\nimport nothing_like_it\n", encoding="utf-8")
    words = (
        "simulate",
        str(experiment),
        "--task",
        "./chatty.py:make_task",
        "--json",
        "--folder",
        "out",
    )
    done = peerpoise_in(task, *words)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (78, 78)
    assert (
        "No module named 'nothing_like_it' (chatty.py, line 2). The traceback is in "
        in document["error"]
    )
    traceback = Path(document["error"].rpartition(" in ")[2].rstrip("."))
    assert "import nothing_like_it" in traceback.read_text(encoding="utf-8")
    traceback.unlink()


def test_with_debugging_the_traceback_is_on_the_terminal(task: Path, experiment: Path) -> None:
    (task / "chatty.py").write_text("import nothing_like_it\n", encoding="utf-8")
    words = ("simulate", str(experiment), "--task", "chatty.py:make_task", "--folder", "out")
    done = peerpoise_in(task, *words, PEERPOISE_DEBUG="1")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("No module named 'nothing_like_it' (chatty.py, line 1).\n")


def test_within_one_process_the_streams_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with documents_only():
        print("aside")
        print_json({"a": "ü"}, indent=None)
    print("afterwards")
    out, err = capfd.readouterr()
    assert sys.stdout is before
    assert out == '{"a": "\\u00fc"}\nafterwards\n'
    assert err == "aside\n"


def test_in_a_captured_call_there_is_only_the_document(peerpoise: Call) -> None:
    assert isinstance(json.loads(peerpoise("algorithms", "--json").out), list)


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (("algorithms",), ""),
        (("algorithms",), "1"),
        (("algorithms", "--json"), ""),
        (("--help",), "1"),
    ],
)
def test_a_reader_that_has_gone_hears_no_word(words: tuple[str, ...], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "peerpoise", *words],
            stdout=gone,
            stderr=subprocess.PIPE,
            env=environ,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("algorithms",), ("algorithms", "--json"), ("config", "schema")])
def test_a_full_disk_is_a_sentence(words: tuple[str, ...], unbuffered: str) -> None:
    command, environ = (
        [sys.executable, "-m", "peerpoise", *words],
        {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environ, check=False
        )
    assert done.returncode == 73
    assert done.stderr.startswith("peerpoise: ")
    assert done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1
