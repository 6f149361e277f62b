"""peerpoise sweep and report as users call them. What they compute: tests/experiments."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from kit.command import Call
from kit.sweeps import UNTUNED


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(UNTUNED)
    return path


def test_a_sweep_and_its_report(peerpoise: Call, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = peerpoise("sweep", file, "--out", out, "--limit", "1")
    assert first.code == 0, first.err
    assert "1 cells finished, 1 left. Stopped: --limit 1 is reached." in first.out
    assert "1/2" in first.out
    second = peerpoise("sweep", file, "--out", out, "--json")
    told = json.loads(second.out)
    assert (told["finished"], told["left"], told["failed"], told["stopped"]) == (1, 0, {}, None)
    [row] = told["settings"][0]["rows"]
    assert (row["method"], row["state"], row["lr"]) == ("xavg", "finished", 0.1)
    made = peerpoise(
        "report",
        out,
        "--markdown",
        tmp_path / "page" / "small.md",
        "--plots",
        tmp_path / "plots",
        "--json",
    )
    assert made.code == 0, made.err
    names = {Path(it).name for it in json.loads(made.out)["files"]}
    assert {"report.html", "small.md", "small-small-rounds.svg", "small-small-rounds.png"} <= names
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "| xavg | 0.1 |" in (tmp_path / "page" / "small.md").read_text()
    assert (tmp_path / "plots" / "small-small-rounds.png").read_bytes().startswith(b"\x89PNG")
    both = peerpoise("report", out, out, "--out", tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text().count("<h2>small</h2>") == 2, both.err


def test_settings_whose_names_differ_in_punctuation_have_plots_and_anchors_of_their_own(
    peerpoise: Call, file: Path, tmp_path: Path
) -> None:
    file.write_text(
        UNTUNED.replace("[1, 2]", "[1]") + '[sweep.settings."a b"]\n[sweep.settings."a-b"]\n',
        encoding="utf-8",
    )
    peerpoise("sweep", file, "--out", tmp_path / "out")
    made = peerpoise("report", tmp_path / "out", "--plots", tmp_path / "plots")
    assert made.code == 0, made.err
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"small-a-b-rounds.svg", "small-a-b-rounds-2.svg"} <= names
    ids = re.findall(r'<h2 id="([^"]*)"', (tmp_path / "out" / "report.html").read_text())
    assert ids == ["s-small-a-b", "s-small-a-b-2"]


def test_a_dry_run_writes_nothing(peerpoise: Call, file: Path, tmp_path: Path) -> None:
    result = peerpoise("sweep", file, "--out", tmp_path / "out", "--dry-run")
    assert result.code == 0, result.err
    assert "xavg: lr 0.1, seeds 1, 2: 2 cells, 2 left" in result.out
    assert "2 cells are unmeasured (--measure)" in result.out
    assert not (tmp_path / "out").exists()
    told = json.loads(
        peerpoise("sweep", file, "--out", tmp_path / "out", "--dry-run", "--json").out
    )
    assert (told["cells"], told["left"]) == (2, 2)
    assert told["left_now"] == ["small, xavg, lr 0.1, seed 1", "small, xavg, lr 0.1, seed 2"]


def test_measuring_says_core_hours(peerpoise: Call, file: Path, tmp_path: Path) -> None:
    result = peerpoise("sweep", file, "--out", tmp_path / "out", "--dry-run", "--measure", "--json")
    told = json.loads(result.out)
    assert told["unmeasured"] == 0
    assert told["core_hours"] == pytest.approx(2 * told["rows"][0]["seconds_a_cell"] / 3600)
    assert told["core_hours"] > 0
    assert not (tmp_path / "out" / "cells").exists(), "ten rounds are no cell"


def test_data_that_can_not_be_divided_are_found_before_a_cell_runs(
    peerpoise: Call, file: Path, tmp_path: Path
) -> None:
    """Only a partition knows that a column is missing."""
    bad = "[sweep.settings.bad]\nexperiment = { partition = 'column', column = 'who' }\n"
    file.write_text(UNTUNED + "[sweep.settings.good]\n" + bad, encoding="utf-8")
    result = peerpoise("sweep", file, "--out", tmp_path / "out")
    assert result.code == 78
    assert "experiment.column = 'who' is no column of the data" in result.err
    assert "(setting bad, method xavg)" in result.err
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "code", "part"),
    [
        (UNTUNED.partition("[sweep]")[0], [], 78, "no [sweep] section"),
        (UNTUNED + '[sweep.grid]\n"train.runds" = [1]\n', [], 78, "train.runds: unknown key"),
        (
            UNTUNED + '[sweep.grid]\n"train.rounds" = []\n',
            [],
            78,
            "grid.train.rounds has no values",
        ),
        (UNTUNED, ["--set", 'sweep.algorithms=["sgdx"]'], 78, "Unknown algorithm 'sgdx'"),
        (UNTUNED, ["--set", "algorithm.lrr=3"], 78, "algorithm.lrr: unknown key"),
        (UNTUNED, ["--set", "task.data=imagenet"], 78, "Unknown data set 'imagenet'"),
        (
            UNTUNED,
            ["--only", "ross"],
            78,
            "there is no such setting or method; choose of small, xavg",
        ),
        (UNTUNED, ["--ray", "127.0.0.1:1"], 78, "pip install 'peerpoise[ray]'"),
    ],
)
def test_mistakes_are_a_sentence(
    peerpoise: Call,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file.write_text(text, encoding="utf-8")
    result = peerpoise("sweep", file, "--out", tmp_path / "out", *arguments)
    assert (result.code, result.err.count("\n")) == (code, 1), result.err
    assert part in result.err


def test_the_folder_of_another_sweep_is_left_alone(
    peerpoise: Call, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert peerpoise("sweep", file, "--out", out, "--limit", "1").code == 0
    other = tmp_path / "other.toml"
    other.write_text(UNTUNED)
    result = peerpoise("sweep", other, "--out", out)
    assert (result.code, result.err) == (
        78,
        f"peerpoise: {out} holds the sweep 'small', not 'other'; choose another --out.\n",
    )
    assert peerpoise("report", tmp_path).err == (
        f"peerpoise: {tmp_path} holds no sweep and no run; name a folder that one of them wrote.\n"
    )


def test_plots_need_matplotlib(
    peerpoise: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peerpoise("sweep", file, "--out", tmp_path / "out", "--limit", "1").code == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = peerpoise("report", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (78, 1)
    assert "pip install 'peerpoise[report]'" in result.err
