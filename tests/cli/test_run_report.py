"""The page of one run: nodes, figures over rounds, what was noted, and nothing outside of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kit import ROOT
from kit.command import Call

EXAMPLE = ROOT / "deploy" / "examples" / "quickstart.toml"


@pytest.fixture
def run(tmp_path: Path, peerpoise: Call) -> Path:
    short = {"train.rounds": 4, "train.evaluate_every": 2, "experiment.nodes": 2}
    words = [word for key, value in short.items() for word in ("--set", f"{key}={value}")]
    assert peerpoise("simulate", EXAMPLE, *words, "--folder", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_it_has_each_node_its_curves_and_its_lines(run: Path, peerpoise: Call) -> None:
    assert peerpoise("report", run).out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    for words in ("quickstart", "n0", "n1", "average of the models", "4 rounds", "run.toml"):
        assert words in text
    assert text.count("against any coalition of other nodes") >= 1
    assert text.count("<svg") == 2, "the headline metric, and what was spent"
    assert re.search(r"round 4 of 4: accuracy \d", text)
    assert re.search(r"finished 4 rounds after \d", text)
    outside = re.findall(r'(?:src|href)="(?!#)[^"]*"', text)
    assert outside == []


def test_a_node_alone_has_a_page_too(run: Path, tmp_path: Path, peerpoise: Call) -> None:
    home = run / "nodes" / "n1"
    (home / "run.toml").write_bytes((run / "run.toml").read_bytes())
    ended = peerpoise("report", home, "--out", tmp_path / "n1.html", "--json")
    assert ended.code == 0, ended.err
    text = (tmp_path / "n1.html").read_text(encoding="utf-8")
    assert "What n1 noted" in text
    assert "What n0 noted" not in text


def test_without_matplotlib_it_says_what_is_missing(
    run: Path, peerpoise: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert peerpoise("report", run).code == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" not in text
    assert "Plots need matplotlib" in text


def test_a_folder_of_neither_is_one_sentence(tmp_path: Path, peerpoise: Call) -> None:
    ended = peerpoise("report", tmp_path)
    assert ended.code != 0
    assert "holds no sweep" in ended.err
