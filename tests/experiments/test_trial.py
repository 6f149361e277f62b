"""A cell's figures: what the run folder says, no more and no less."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from node import data
from node.config import ExperimentConfig, TaskSection
from node.experiments import in_process
from node.experiments.sweep.trial import figures, run_trial
from node.privacy.accountant import Mechanism, epsilon_total
from node.privacy.noise import effective
from node.records import journal

CLEAR = {"mode": "none", "batch": 30}
NOISED = {"mode": "strict", "epsilon": 8.0, "delta": 1e-3, "rate": 0.2, "batch": 50}


def config(**changes):
    told = {
        "train": {"rounds": 5, "evaluate_every": 2},
        "experiment": {"nodes": 4},
        "privacy": CLEAR,
    }
    return ExperimentConfig(**{**told, **changes})


def without_time(record):
    shown = {
        key: value for key, value in record["figures"].items() if key not in ("seconds", "summary")
    }
    summary = {
        key: value for key, value in record["figures"]["summary"].items() if "seconds" not in key
    }
    return {**shown, "summary": summary, "code": record["code"]}


def test_the_same_cell_has_the_same_figures():
    told = config(algorithm={"name": "dpdl", "lr": 0.3}).model_dump(mode="json")
    assert without_time(run_trial(told)) == without_time(run_trial(told))


def test_figures_are_those_of_the_journals(tmp_path):
    summary = in_process.simulate(config(algorithm={"name": "dpdl"}), tmp_path)
    found = figures(tmp_path, summary)
    assert found["rounds"] == [2, 4, 5]
    assert sorted(found["metrics"]["accuracy"]) == ["n0", "n1", "n2", "n3"]
    assert {
        name: values[-1] for name, values in found["metrics"]["accuracy"].items()
    } == summary.task_metrics["accuracy"].per_node
    assert found["metrics"]["loss"].keys() == found["metrics"]["accuracy"].keys()
    assert found["bytes"][-1] == summary.bytes_sent.mean
    assert found["bytes"][0] == found["bytes"][-1] * 2 / 5
    assert found["seconds"][-1] == pytest.approx(summary.wall_seconds)
    assert found["distance"][-1] == pytest.approx(summary.consensus_distance)
    assert found["epsilon"] is None
    rounds = [
        it for it in journal.read(tmp_path / "nodes/n1/journal.jsonl") if it["event"] == "round"
    ]
    for kind in ("cosine", "calibration"):
        expected = statistics.fmean(it["diagnostics"][kind]["n2"] for it in rounds[2:4])
        assert found["weights"][kind]["n1"]["n2"][1] == pytest.approx(expected)


def test_epsilon_is_told_with_its_conditions():
    found = run_trial(config(algorithm={"name": "dpdl"}, privacy=NOISED).model_dump(mode="json"))[
        "figures"
    ]
    epsilon = found["epsilon"]
    assert 0 < epsilon["total"][0] < epsilon["total"][-1] <= 8.0
    assert epsilon["link"][-1] < epsilon["total"][-1]
    expected = {
        "mode": "strict",
        "batches": "independent",
        "adjacency": "add/remove one example",
        "delta": 1e-3,
        "accountant": "RDP",
        "against": "any coalition of other nodes",
    }
    assert {key: epsilon[key] for key in expected} == expected
    assert "accounted" not in found


def test_mode_paper_has_the_accounted_epsilon_of_its_answers():
    """One shared batch a round, three answers: σ/√3."""
    told = config(algorithm={"name": "dpdl"}, privacy={**NOISED, "mode": "paper"})
    found = run_trial(told.model_dump(mode="json"))["figures"]
    sigma = effective(found["summary"]["privacy"]["sigma"], 650)
    told = Mechanism(sigma=sigma, rate=0.2, batches="shared", releases=3)
    assert found["accounted"] == pytest.approx(epsilon_total(told, 5, 1e-3))
    assert found["summary"]["privacy"]["epsilon"]["total"] is None
    assert found["epsilon"]["total"] == [None, None, None]


def test_attackers_are_in_no_figure(tmp_path):
    summary = in_process.simulate(config(algorithm={"name": "dmsgd"}), tmp_path)
    honest = figures(tmp_path, summary)

    found = figures(tmp_path, summary.model_copy(update={"attackers": ["n1", "n3"]}))
    assert found["attackers"] == ["n1", "n3"]
    for name, by_node in honest["metrics"].items():
        assert found["metrics"][name] == {node: by_node[node] for node in ("n0", "n2")}


def test_held_out_examples_are_training_examples():
    """A fifth of them; nobody learns from them, and none is a test example."""
    train, test = data.public_sets(TaskSection())
    left, held = data.public_sets(TaskSection(held_out=True))
    assert isinstance(train, data.Examples)
    assert isinstance(test, data.Examples)
    assert isinstance(left, data.Examples)
    assert isinstance(held, data.Examples)
    assert len(left) + len(held) == len(train)
    assert len(held) == pytest.approx(len(train) / 5, abs=5)
    rows = {tuple(x.flatten().tolist()) for x in train.x}
    assert {tuple(x.flatten().tolist()) for x in torch.cat([left.x, held.x])} == rows
    assert not {tuple(x.flatten().tolist()) for x in held.x} & {
        tuple(x.flatten().tolist()) for x in left.x
    }
    assert not {tuple(x.flatten().tolist()) for x in held.x} & {
        tuple(x.flatten().tolist()) for x in test.x
    }


def test_a_record_is_json():
    record = run_trial(config().model_dump(mode="json"))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
