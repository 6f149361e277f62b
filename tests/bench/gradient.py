"""Private gradients of batches of 250 against plain ones: CNN, ResNet-8, MLP, softmax regression.

private  what the gate does for one answer, without the ledger: a secret Poisson batch of 250
         expected examples, gradients clipped one by one, noise on the grid.
plain    one backward pass of the mean loss over 250 examples of the same data set.

Interleaved in one thread that keeps freed memory as daemons do, medians of CPU time. The parts of
the private gradient are timed apart.

    python tests/bench/gradient.py [--quick] [--chunks 16 32 64 128 250] [--backends ghost vmap]
    [--models mlp softmax]

Table on stderr, JSON on stdout. A model for which a backend is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node import process
from node.config import RunConfig
from node.maths.backends import pick
from node.maths.chunks import chunk_for
from node.maths.clipping import clipped_sum, mean_gradient
from node.privacy import noise
from node.randomness import Keys
from node.task import Task
from node.tasks import make
from peer.errors import ConfigurationError

BATCH, RATE, CLIP, SIGMA = 250, 0.25, 1.0, 2.0
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "cnn", "image_size": 28},
    "resnet8": {"model": "resnet8", "image_size": 32},
    "mlp": {"model": "mlp", "image_size": 28, "hidden": 64},
    "softmax": {"model": "softmax", "image_size": 28},
}


class Bench:
    """One model's private and plain gradient; every call of either is for a new round."""

    def __init__(self, model: str, chunk: int, backend: Any) -> None:
        """Raises ConfigurationError: the model can't have this backend."""
        self.model = model
        run = RunConfig(task={"data": "digits", **MODELS[model]}, privacy={"sigma": SIGMA})  # type: ignore[arg-type]
        self.task: Task = make(run, np.arange(int(BATCH / RATE)))
        self.x = self.task.initial_parameters(1)
        self.keys, self.round = Keys.insecure(1, "bench"), 0
        self.backend = pick(backend, self.task)
        self.chunk = chunk or chunk_for(self.task.layout.size, backend=self.backend)

    def plain(self) -> None:
        mean_gradient(self.task, self.x, torch.arange(BATCH))

    def private(self) -> dict[str, float]:
        """CPU seconds of each part."""
        self.round += 1
        seconds, last = {}, time.thread_time()

        def lap(part: str) -> None:
            nonlocal last
            now = time.thread_time()
            seconds[part], last = now - last, now

        uniform = self.keys.stream("batch", self.round, "bench").uniform(self.task.num_examples)
        rows = torch.from_numpy(np.flatnonzero(uniform < RATE))
        lap("batch")
        total = clipped_sum(self.task, self.x, rows, CLIP, chunk=self.chunk, backend=self.backend)
        lap("clip")
        noise.release(total, SIGMA, CLIP, BATCH, self.keys.stream("noise", self.round, "bench"))
        lap("noise")
        return seconds


def cpu(work: Callable[[], None]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def benches(model: str, chunks: list[int], backends: list[str]) -> list[Bench]:
    rows = []
    for backend in backends:
        with suppress(ConfigurationError):
            rows += [Bench(model, chunk, backend) for chunk in chunks]
    return rows


def measure(compared: list[Bench], repetitions: int) -> list[dict[str, Any]]:
    """Of one model, one row for each: median CPU milliseconds and their ratio."""
    plain: list[float] = []
    private: list[list[dict[str, float]]] = [[] for _ in compared]
    for repetition in range(repetitions + 2):
        for bench, timings in zip(compared, private, strict=True):
            before, parts, after = cpu(bench.plain), bench.private(), cpu(bench.plain)
            if repetition >= 2:  # the first two warm up
                plain += [before, after]
                timings.append(parts)
    base = statistics.median(plain)
    return [row(bench, base, timings) for bench, timings in zip(compared, private, strict=True)]


def row(bench: Bench, plain: float, private: list[dict[str, float]]) -> dict[str, Any]:
    whole = [sum(parts.values()) for parts in private]
    low, high = (float(np.quantile(whole, q)) / plain for q in (0.25, 0.75))
    return {
        "model": bench.model,
        "parameters": bench.task.layout.size,
        "batch": BATCH,
        "chunk": bench.chunk,
        "backend": bench.backend,
        "plain_ms": 1000 * plain,
        "private_ms": 1000 * statistics.median(whole),
        **{
            f"{part}_ms": 1000 * statistics.median(found[part] for found in private)
            for part in private[0]
        },
        "cpu_ratio": statistics.median(whole) / plain,
        "cpu_ratio_quartiles": [low, high],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "model",
        "d",
        "backend",
        "chunk",
        "plain ms",
        "private ms",
        "clip",
        "noise",
        "ratio",
        "quartiles",
    )
    table.title = f"CPU time of one gradient, batch {BATCH}"
    for row in rows:
        low, high = row["cpu_ratio_quartiles"]
        figures = [f"{row[name]:.1f}" for name in ("plain_ms", "private_ms", "clip_ms", "noise_ms")]
        case = [row["model"], f"{row['parameters']:,}", row["backend"], str(row["chunk"])]
        table.add_row(*case, *figures, f"{row['cpu_ratio']:.2f}", f"{low:.2f} – {high:.2f}")
    Console(stderr=True, width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five repetitions")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[0], help="examples per chunk; 0: the default"
    )
    parser.add_argument(
        "--backends", nargs="+", default=["auto"], help="privacy.backend: auto, ghost, vmap, loop"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="all of them by default")
    options = parser.parse_args()
    process.retain_freed_memory()
    torch.set_num_threads(1)
    repetitions = 5 if options.quick else 21
    compared = (benches(model, options.chunks, options.backends) for model in options.models)
    rows = [row for of_model in compared for row in measure(of_model, repetitions)]
    show(rows)
    print(json.dumps({"benchmark": "gradient", "rows": rows}))


if __name__ == "__main__":
    main()
