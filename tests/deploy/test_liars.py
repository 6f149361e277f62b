"""The table of liars (docs/liars.py): its settings are valid, and what it shows of a folder. No cell
is run here."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from node.attacks import Attack
from node.config import ExperimentConfig, load

ROOT = Path(__file__).parents[2]
LIARS = runpy.run_path(str(ROOT / "docs" / "liars.py"))


@pytest.mark.parametrize("liar", LIARS["LIARS"])
def test_its_settings_are_valid(liar: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells: list[ExperimentConfig] = []

    def peerpoise(command: str, example: str, *arguments: str) -> None:
        settings = [value for key, value in pairwise(arguments) if key == "--set"]
        cells.append(load(ExperimentConfig, [Path(example)], settings, environ={}))

    monkeypatch.setitem(LIARS["run"].__globals__, "peerpoise", peerpoise)
    for weights in LIARS["WEIGHTS"]:
        LIARS["cell"](tmp_path, tmp_path / "start", weights, liar)
    assert len(cells) == 4
    for config in cells:
        attack = config.experiment.attack_of("n5")
        assert (attack is None) == (liar == "nobody")
        if attack:
            Attack.of(attack)
        bound: Any = dict(config.algorithm).get("norm_bound", 2.0)
        assert bound in (2.0, 1e9)


def test_what_was_not_run_is_called_that(tmp_path: Path) -> None:
    home = tmp_path / "audited-gross"
    journal = home / "nodes" / "n0" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    (home / "summary.json").write_text(json.dumps({"task_metrics": {"reward": {"mean": 0.5}}}))
    verdicts = [
        {"convicted": {"n1": 0.0, "n5": float(t > 1)}, "gain": {"n1": 1.0, "n5": t - 5.0}}
        for t in range(4)
    ]
    rounds = [{"event": "round", "diagnostics": each} for each in verdicts]
    journal.write_text("".join(json.dumps(each) + "\n" for each in [{"event": "start"}, *rounds]))
    assert "| gross | not run | not run | not run | 0.500 |" in LIARS["table"](tmp_path)
    of_liar = " ".join(["0", "0", "1", "1", *["0"] * 20])
    assert LIARS["verdicts"](home) == f"n5 {of_liar}, 2 of 2 at z above −3; of 4 others 0"
