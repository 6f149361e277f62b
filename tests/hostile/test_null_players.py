"""Free riders against ROSS: what a neighbor that answers with zeros or with one's own model weighs,
and costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from node.config import ExperimentConfig
from node.experiments.in_process import simulate

BASE: dict[str, Any] = {
    "task": {"data": "digits", "model": "mlp", "hidden": 32},
    "train": {"rounds": 40, "seed": 1, "evaluate_every": 10},
    "privacy": {"mode": "none", "batch": 32},
}


def played(
    folder: Path, kind: str, attack: dict[str, Any] | None, null_players: str = "capped"
) -> tuple[float, float]:
    """Mean accuracy of the honest, over the last two evaluations, and the largest weight n0 had
    with any of them.
    """
    found = ExperimentConfig.model_validate(
        BASE
        | {
            "topology": {"kind": kind},
            "algorithm": {"name": "ross", "lr": 0.1, "null_players": null_players},
        }
        | {"experiment": {"nodes": 5, "alpha": 0.25, "seed": 1, "attack": attack}}
    )
    simulate(found, folder)
    lines = [
        json.loads(line)
        for name in ("n1", "n2", "n3", "n4")
        for line in (folder / "nodes" / name / "journal.jsonl").read_text().splitlines()
    ]
    accuracy = fmean(
        it["metrics"]["accuracy"] for it in lines if it["event"] == "test" and it["round"] >= 29
    )
    return accuracy, max(
        it["diagnostics"]["weight"].get("n0", 0.0) for it in lines if it["event"] == "round"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ring", pytest.param("full", marks=pytest.mark.long)])
@pytest.mark.long
def test_free_riders_weigh_their_share_at_most_and_learning_goes_on(
    tmp_path: Path, kind: str
) -> None:
    share = {"ring": 1 / 3, "full": 1 / 5}[kind]
    clean, _ = played(tmp_path / "clean", kind, None)
    for name in ("zero", "echo"):
        attack = {"name": name, "nodes": ["n0"], "words": ["answer"]}
        accuracy, weight = played(tmp_path / name, kind, attack)
        assert weight <= share + 1e-9
        assert accuracy > clean - 0.06
        assert played(tmp_path / f"{name} paper", kind, attack, "paper")[1] > 2 * share, "power"


def test_a_whisper_weighs_its_share_at_most(tmp_path: Path) -> None:
    """A millionth of an honest gradient isn't zero, and points where an honest one does."""
    attack = {"name": "scaling", "factor": 1e-6, "nodes": ["n0"], "words": ["answer"]}
    assert played(tmp_path / "capped", "ring", attack)[1] <= 1 / 3 + 1e-9
    assert played(tmp_path / "paper", "ring", attack, "paper")[1] > 0.9, "power"
