"""Dec-LoRA on a tiny Llama: adapters travel and are averaged, the model stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.config import ExperimentConfig
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.maths.mixing import materialize
from node.rounds import lockstep
from node.task import views
from node.tasks.causal_lm import save_pretrained
from peer.neighborhood import View

RANK, ALPHA = 2, 16.0
ADAPTERS = 3 * RANK * (4 * (16 + 16) + 3 * (16 + 24))
"""A and B beside q, k, v, o of 16 × 16 and three maps of 16 × 24, in three layers."""


@pytest.fixture
def config(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[[str], ExperimentConfig]:
    """Four peers on a graph of this kind."""
    model, text = model_folder(), tmp_path / "text.jsonl"
    text.write_text(
        "\n".join(
            f'{{"text": "{row}"}}' for row in ["the film was good", "a bad film", "the was a"] * 10
        )
    )

    def of(kind: str) -> ExperimentConfig:
        values = {
            "algorithm": {"name": "dec-lora", "lr": 0.01},
            "topology": {"kind": kind},
            "task": {"name": "causal-lm", "model": str(model), "data": "file", "path": text,
                     "text": {"length": 8, "lora_rank": RANK, "lora_alpha": ALPHA}},
            "train": {"rounds": 3, "seed": 1, "evaluate_every": 0},
            "privacy": {"mode": "none", "batch": 4},
            "experiment": {"nodes": 4},
        }  # fmt: skip
        return ExperimentConfig(**values)  # type: ignore[arg-type]

    return of


def test_only_adapters_travel(config: Callable[[str], ExperimentConfig], tmp_path: Path) -> None:
    summary = in_process.simulate(config("ring"), tmp_path / "run")
    assert summary.algorithm_metrics["bytes_per_step"] == 2 * 4 * ADAPTERS, "to two neighbors"
    assert summary.consensus_distance > 0  # type: ignore[operator]


def test_a_and_b_are_averaged_each_for_itself(config: Callable[[str], ExperimentConfig]) -> None:
    """On a complete graph everybody has the mean of all A and of all B, which is not what the mean
    of B·A would be.
    """
    twins = in_process.make_learners(resolve(config("full")))
    verbs = [
        next(learner.algorithm.round(0, View(learner.neighborhood))) for learner in twins.values()
    ]
    payloads: list[Any] = [materialize(verb.tensors) for verb in verbs]
    sent = torch.stack(payloads)
    learners = in_process.make_learners(resolve(config("full")))
    algorithms = {name: learner.algorithm for name, learner in learners.items()}
    lockstep.run(algorithms, learners["n0"].plan.neighborhoods, 1)
    assert sent.shape == (4, ADAPTERS)
    assert sent.std(0).max() > 0.005, "the peers disagree"
    for learner in learners.values():
        torch.testing.assert_close(learner.algorithm.parameters, sent.mean(0))


def test_the_model_is_untouched_and_adapters_are_merged_into_it(
    config: Callable[[str], ExperimentConfig], tmp_path: Path
) -> None:
    """W + (α/r)·B·A in the layers, all else as it came."""
    run = config("ring")
    learners = in_process.make_learners(resolve(run))
    algorithms = {name: learner.algorithm for name, learner in learners.items()}
    lockstep.run(algorithms, learners["n0"].plan.neighborhoods, 3)
    learner = learners["n0"]
    save_pretrained(
        learner.run, learner.task.layout, learner.algorithm.parameters, tmp_path / "merged"
    )
    came, merged = (
        AutoModelForCausalLM.from_pretrained(where).state_dict()
        for where in (run.task.model, tmp_path / "merged")
    )
    learned, adapted = views(learner.task.layout, learner.algorithm.parameters), 0
    for name, value in came.items():
        a, b = (
            next(
                (
                    p
                    for key, p in learned.items()
                    if f"{name.removesuffix('.weight')}.lora_{which}." in key
                ),
                None,
            )
            for which in "AB"
        )
        if a is None or b is None:
            assert torch.equal(merged[name], value), name
        else:
            adapted += 1
            assert b.any()
            torch.testing.assert_close(merged[name], value + ALPHA / RANK * b @ a)
    assert adapted == 3 * 7
