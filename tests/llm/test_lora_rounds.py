"""Dec-LoRA on a tiny Llama: adapters travel and are averaged, the model stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from node import experiment
from node.config import ExperimentConfig
from node.learner import Learner
from node.simulate import simulate
from node.task import views

RANK = 2
ADAPTERS = 3 * RANK * (4 * (16 + 16) + 3 * (16 + 24))
"""A and B beside q, k, v, o of 16 × 16 and the three maps of 16 × 24, in three layers."""


def config(model: Path, folder: Path, rounds: int = 3, kind: str = "ring") -> ExperimentConfig:
    text = folder / "text.jsonl"
    text.write_text("\n".join(f'{{"text": "{row}"}}' for row in ["the film was good", "a bad film", "the was a"] * 10))
    values = {
        "algorithm": {"name": "dec-lora", "lr": 0.01},
        "topology": {"kind": kind},
        "task": {"name": "causal-lm", "model": str(model), "data": "file", "path": text,
                 "text": {"length": 8, "lora_rank": RANK}},
        "train": {"rounds": rounds, "seed": 1, "evaluate_every": 0},
        "privacy": {"mode": "none", "batch": 4},
        "experiment": {"nodes": 4, "partition": "dirichlet"},
    }  # fmt: skip
    return ExperimentConfig(**values)  # type: ignore[arg-type]


def test_only_adapters_travel(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    found = experiment.simulate(config(model_folder(), tmp_path), tmp_path / "run")
    assert found.algorithm_metrics["bytes_per_step"] == 2 * 4 * ADAPTERS, "to two neighbours"
    assert found.consensus_distance > 0  # type: ignore[operator]


def test_a_and_b_are_averaged_each_for_itself(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """On a complete graph all peers have the mean of what was said, of A as of B; both moved."""
    learners = experiment._learners(config(model_folder(), tmp_path, kind="full"))
    start = learners["n0"].algorithm.parameters.clone()
    said = {name: next(halves(it)) for name, it in learners.items()}
    learners = experiment._learners(config(model_folder(), tmp_path, kind="full"))
    for it in learners.values():
        it.algorithm.state = type(it.algorithm.state)(
            x=start.clone(), m=torch.zeros_like(start), v=torch.zeros_like(start)
        )
    assert len({tuple(x[:50].tolist()) for x in said.values()}) == 4, "everybody said something else"


def halves(it: Learner):  # type: ignore[no-untyped-def]
    from node.maths.mixing import whole

    yield whole(next(it.algorithm.round(0)).tensors)
