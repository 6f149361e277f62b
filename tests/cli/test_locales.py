"""Commands under other locales than UTF-8 end 0, print in the locale's encoding and write files in
UTF-8.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit.sweeps import UNTUNED

LOCALES = {
    "latin-1": ("de_DE", "ISO-8859-1"),
    "iso8859-2": ("pl_PL", "ISO-8859-2"),
    "gbk": ("zh_CN", "GBK"),
    "koi8-r": ("ru_RU", "KOI8-R"),
}
"""Encoding -> a language and its character map, as localedef knows them."""
GREEK = {"gbk", "C", "POSIX"}
"""Where ε can be printed. Python reads C and POSIX as UTF-8."""
COMMAND = [sys.executable, "-P", "-m", "peerpoise"]


def under(*encodings: str, long: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """`long`: those that only the long form tries."""
    rest = [pytest.param(name, marks=pytest.mark.long) for name in long]
    return pytest.mark.parametrize("encoding", [*encodings, *rest], indirect=True)


@pytest.fixture
def encoding(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Commands that start from here on have a locale with this encoding."""
    for variable in ("PYTHONIOENCODING", "PYTHONUTF8"):
        monkeypatch.delenv(variable, raising=False)
    name: str = request.param
    variables = made(tmp_path / "locales", *LOCALES[name]) if name in LOCALES else {"LC_ALL": name}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    return name


def made(folder: Path, language: str, characters: str) -> dict[str, str]:
    folder.mkdir()
    name = f"{language}.{characters}"
    if shutil.which("localedef") is None:
        pytest.skip("no program localedef makes locales here; on Debian: apt-get install locales")
    command = ["localedef", "-f", characters, "-i", language, f"./{name}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(
            "the sources of locales are not on this machine; on Debian: apt-get install locales"
        )
    return {"LOCPATH": str(folder), "LC_ALL": name}


def printed(encoding: str, *words: str | Path) -> str:
    """What a command says on standard output; it ends 0 and has nothing to say on standard
    error.
    """
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode(encoding if encoding in LOCALES else "utf-8")


@under("gbk", "C", long=("latin-1", "iso8859-2", "koi8-r", "POSIX"))
def test_our_sources_are_read_as_utf_8(encoding: str) -> None:
    """Where a letter is missing it is spelled, as π and Σ are in Latin-1."""
    sigma = "Σ" if encoding in GREEK else "sum"
    assert f"{sigma}_{{k heard}} w_ik" in printed(encoding, "algorithms")


@under("latin-1", long=("gbk",))
def test_a_table_is_printed(encoding: str) -> None:
    text = printed(
        encoding, "plan", "--epsilon", "8", "--rounds", "100", "--rate", "0.05", "--nodes", "4"
    )
    assert ("ε" if encoding in GREEK else "eps") in text


@under("latin-1", long=("gbk",))
def test_marks_of_doctor_are_spelled(encoding: str) -> None:
    assert re.search(r"^ok  python ", printed(encoding, "doctor"), re.MULTILINE)


@under("gbk")
def test_an_experiment_ends_with_its_summary(
    encoding: str, experiment: Path, tmp_path: Path
) -> None:
    text = printed(encoding, "simulate", experiment, "--folder", tmp_path / "run")
    assert ("ε_total" if encoding in GREEK else "eps_total") in text
    assert (tmp_path / "run" / "summary.json").read_bytes().decode("utf-8")


@under("latin-1")
def test_a_name_that_the_locale_lacks_is_a_sentence(
    encoding: str, experiment: Path, tmp_path: Path
) -> None:
    """In names of folders nothing is replaced: they would not be found again."""
    text = experiment.read_text(encoding="utf-8").replace('"test"', '"任"')
    experiment.write_text(text, encoding="utf-8")
    words = [*COMMAND, "simulate", str(experiment)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 78
    assert b"choose another name, or LC_ALL=C.UTF-8" in done.stderr
    assert b"bug" not in done.stderr


@pytest.mark.cluster
@under("gbk", long=("latin-1",))
@pytest.mark.long
def test_daemons_write_utf_8(encoding: str, experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    printed(encoding, "up", experiment, "--folder", folder)
    printed(encoding, "eval", folder)
    for name in ("n0", "n1", "n2"):
        assert "ε so far" in (folder / f"metrics-{name}.txt").read_bytes().decode("utf-8")
        assert (folder / "nodes" / name / "journal.jsonl").read_bytes().decode("utf-8")


@pytest.mark.cluster
@pytest.mark.long
@under("gbk")
def test_a_running_daemon_is_shown(encoding: str, experiment: Path, tmp_path: Path) -> None:
    """When the first tenth is done."""
    words = ["up", str(experiment), "--set", "train.rounds=1000", "--folder", str(tmp_path / "run")]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, encoding=encoding) as process:
        assert process.stdout
        for line in process.stdout:
            if re.search(r"n0 [1-9]\d*/1000", line):
                break
        text = printed(encoding, "status", "n2")
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert "of 1000" in text


@pytest.mark.cluster
@pytest.mark.long
@under("iso8859-2")
def test_a_sweep_and_its_report(encoding: str, tmp_path: Path) -> None:
    """Workers talk through pipes."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(UNTUNED, encoding="utf-8")
    assert "xavg" in printed(encoding, "sweep", file, "--out", out)
    assert str(out / "report.html") in printed(
        encoding, "report", out, "--markdown", tmp_path / "page.md"
    )
    assert (out / "report.html").read_bytes().decode("utf-8").startswith("<!DOCTYPE html>")
