"""The same on a GPU as on the CPU, within rounding: `pytest -m gpu`. Skipped where torch finds no
NVIDIA GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.algorithms import ALGORITHMS, find
from node.config import ExperimentConfig, RunConfig
from node.experiments.in_process import simulate
from node.maths.backends import probe
from node.maths.clipping import clipped_sum, mean_gradient
from node.records.checkpoint import load_model
from node.tasks import make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="torch finds no NVIDIA GPU here: run it where there is one, with torch's CUDA build",
    ),
]
GPU = torch.device("cuda")
MODELS = {"softmax": {}, "mlp": {"hidden": 16}, "cnn": {"image_size": 28}}


def run(model: str) -> RunConfig:
    task = {"data": "digits", "model": model, **MODELS[model]}
    return RunConfig(task=task, privacy={"sigma": 2.0})  # type: ignore[arg-type]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm())


@pytest.mark.parametrize("model", MODELS)
def test_gradients(model: str) -> None:
    rows, here, there = (
        np.arange(300),
        make(run(model), np.arange(300)),
        make(run(model), np.arange(300), GPU),
    )
    x, draw = here.initial_parameters(1), torch.arange(len(rows))
    assert close(mean_gradient(there, x, draw), mean_gradient(here, x, draw), 1e-4)
    backend = probe(there)
    for clip in (0.01, 1e6):  # all clipped, none clipped
        on_gpu = clipped_sum(there, x, draw, clip, backend=backend)
        assert on_gpu.device.type == "cpu"
        assert close(on_gpu, clipped_sum(here, x, draw, clip), 1e-4)
        assert close(clipped_sum(there, x, draw, clip, backend="loop"), on_gpu, 1e-4)


def test_one_record_moves_the_sum_by_no_more_than_the_clip() -> None:
    """The model that turned rounding into another class (see node/maths/clipping.py), on the GPU's
    kernels.
    """
    task = make(run("softmax"), np.arange(300), GPU)
    x = torch.full((task.layout.size,), 1e9)
    x[1::2] *= -1
    rows, backend = torch.arange(300), probe(task)
    whole = clipped_sum(task, x, rows, 1.0, backend=backend)
    for gone in (0, 17, 299):
        without = clipped_sum(task, x, rows[rows != gone], 1.0, backend=backend)
        assert float((whole - without).norm()) <= 1.0 + 2e-6


@pytest.mark.parametrize("name", sorted(name for name in ALGORITHMS if name != "public"))
@pytest.mark.parametrize("mode", ["strict", "none"])
def test_every_algorithm(name: str, mode: str, tmp_path: Path) -> None:
    parameters = {
        device: final(name, mode, tmp_path / device, device) for device in ("cpu", "cuda")
    }
    assert close(parameters["cuda"], parameters["cpu"], 1e-3)


def final(name: str, mode: str, folder: Path, device: str) -> torch.Tensor:
    config: dict[str, Any] = {
        "algorithm": {"name": name, "lr": 0.05},
        "task": {"data": "digits", "model": "mlp", "hidden": 16},
        "train": {"rounds": 5, "evaluate_every": 0},
        "privacy": {
            "mode": mode,
            "sigma": 2.0,
            "insecure_seed": 1,
            "rate": 0.1,
            "batch": 30,
            "delta": 1e-3,
        },
        "experiment": {"nodes": 3, "device": device},
    }
    if mode == "none":
        if name.startswith("dp-"):
            pytest.skip("it has no run without noise")
        config["privacy"] = {"mode": "none", "batch": 30}
    assert find(name)
    simulate(ExperimentConfig(**config), folder)
    return load_model(folder / "model.safetensors")[1]
