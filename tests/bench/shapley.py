"""Exact Shapley values of all 2^k coalitions of k players, against forward passes on 128 images.

one forward  the value of one model on the validation set
loop         2^k coalitions, each model made in one flat buffer, one forward pass each
linear       the same where the first layer is linear: its product is computed k + 1 times, not 2^k
together     many models in one pass (vmap), the alternative that a GPU may choose
svarm        10 players, against permutations, for as many coalitions: error ÷ spread of φ

One thread, CPU time, medians of interleaved runs. On an NVIDIA GPU: --device cuda, wall time.

    python tests/bench/shapley.py [--quick] [--repetitions 5] [--device cuda]

Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node.config import RunConfig
from node.device import pick
from node.maths.coalitions import ShapleyConfig, shapley_values
from node.maths.shapley import exact, permutations, svarm
from node.task import views
from node.tasks import make
from node.tasks.validation import ValidationScorer

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "cnn", "image_size": 28},
    "resnet8": {"model": "resnet8", "image_size": 32},
    "mlp": {"model": "mlp", "image_size": 28, "hidden": 64},
}
AIM = 1.15


class Bench:
    """k random gradients, and the utility of a model."""

    def __init__(self, model: str, k: int, device: str) -> None:
        run = RunConfig.model_validate(
            {
                "task": {"data": "digits", **MODELS[model]},
                "privacy": {"sigma": 1.0},
                "validation": {"size": 128},
            }
        )
        self.task, self.device = make(run, np.array([], dtype=np.int64), pick(device)), device
        self.x, chance = self.task.initial_parameters(1), torch.Generator().manual_seed(k)
        self.cross = {
            f"{j:02}": torch.randn(self.task.layout.size, generator=chance) for j in range(k)
        }
        self.utility = ValidationScorer(self.task)
        self.utility._batched = False
        self.looped = ValidationScorer(_Plain(self.task))  # type: ignore[arg-type]
        self.looped._batched = False

    def forward(self) -> None:
        with torch.inference_mode():
            float(self.task.validate(views(self.task.layout, self.x.to(self.device)), "neg_loss"))  # type: ignore[attr-defined]

    def exact(self, utility: ValidationScorer) -> Callable[[], None]:
        return lambda: void(
            shapley_values(ShapleyConfig(value="neg_loss"), utility, self.x, self.cross, 0.01, "")
        )

    def together(self) -> None:
        self.looped._batched = True
        self.exact(self.looped)()
        self.looped._batched = False


class _Plain:
    """A task whose first layer nobody knows."""

    def __init__(self, task: Any) -> None:
        self.layout, self.device, self.validate = task.layout, task.device, task.validate
        self.validation = self

    def linear_first(self, x: Any, moves: Any) -> None:
        return None


def void(_: Any) -> None:
    pass


def seconds(work: Callable[[], None], device: str) -> float:
    clock = time.thread_time if device == "cpu" else time.perf_counter
    began = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def measure(model: str, k: int, device: str, repetitions: int) -> dict[str, Any]:
    bench = Bench(model, k, device)
    ways = {
        "loop": bench.exact(bench.looped),
        "linear": bench.exact(bench.utility),
        "together": bench.together,
    }
    took: dict[str, list[float]] = {name: [] for name in ("forward", *ways)}
    for repetition in range(repetitions + 1):
        for _ in range(5):
            took["forward"].append(seconds(bench.forward, device))
        for name, work in ways.items():
            spent = seconds(work, device)
            if repetition:
                took[name].append(spent)
    middle = {name: statistics.median(values) for name, values in took.items()}
    ratio = {name: middle[name] / (2**k * middle["forward"]) for name in ways}
    return {"model": model, "players": k, "forward_seconds": middle["forward"], **ratio}


def estimates(games: int, players: int = 10, budget: int = 200) -> dict[str, float]:
    """Root mean square error ÷ spread of φ, over random games (the worst case)."""
    off: dict[str, list[float]] = {"svarm": [], "permutations": []}
    for seed in range(games):
        table = np.random.default_rng(seed).uniform(-1, 1, 1 << players).tolist()
        values = lambda masks, table=table: [table[mask] for mask in masks]  # noqa: E731
        phi, orders = exact(players, values).phi, (budget - 2) // (players - 1)
        for name, estimate in (
            ("svarm", svarm(players, values, budget=budget, draw=random.Random(seed))),
            ("permutations", permutations(players, values, count=orders, draw=random.Random(seed))),
        ):
            apart = np.subtract(estimate.phi, phi)
            off[name].append(float(np.sqrt((apart**2).mean()) / np.std(phi)))
    return {name: statistics.fmean(values) for name, values in off.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(model, k) for model in MODELS for k in (4, 6, 8)]
    if options.quick:
        cases = [("cnn", 4), ("mlp", 4), ("mlp", 6)]
    rows = [
        measure(model, k, options.device, 2 if options.quick else options.repetitions)
        for model, k in cases
    ]
    table = Table(
        "model", "players", "one forward", f"loop (aim ≤ {AIM})", "first layer once", "together"
    )
    for row in rows:
        ways = [f"{row[name]:.2f}" for name in ("loop", "linear", "together")]
        table.add_row(
            row["model"], str(row["players"]), f"{1e3 * row['forward_seconds']:.1f} ms", *ways
        )
    console, errors = Console(stderr=True), estimates(20 if options.quick else 100)
    console.print(table)
    console.print("cost ÷ (2^k forward passes)")
    console.print(
        f"10 players, 200 coalitions: error {errors['svarm']:.2f} of the spread by svarm, "
        f"{errors['permutations']:.2f} by permutations"
    )
    print(json.dumps({"shapley": rows, "estimates": errors}))


if __name__ == "__main__":
    main()
