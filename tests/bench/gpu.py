"""On an NVIDIA GPU: seconds per round in the papers' setting, where they go, and the backends.

round     one node's part of a round of strict DPDL with the papers' CNN, B = 256, N = 10, full
          graph: ten answers, each for a model that came as bytes, and what the node itself sends
backends  one private gradient of 256 expected examples by vmap and by the loop, against a plain
          backward pass

Seconds on the wall; the GPU is waited for before the clock is read. Nothing is measured where there
is no GPU, unless --device cpu asks for it.

    python tests/bench/gpu.py [--quick] [--device cuda]     table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node.config import RunConfig
from node.device import pick
from node.maths.backends import probe
from node.maths.chunks import Backend
from node.maths.clipping import clipped_sum, mean_gradient
from node.privacy import noise
from node.randomness import Keys
from node.tasks import make

BATCH, NODES, EXAMPLES, SIGMA, CLIP = 256, 10, 1024, 2.0, 1.0
MODELS = {
    "cnn": {"image_size": 28},
    "resnet8": {"image_size": 32},
    "mlp": {"image_size": 28, "hidden": 64},
}


class Bench:
    def __init__(self, model: str, device: torch.device) -> None:
        run = RunConfig.model_validate(
            {
                "task": {"data": "digits", "model": model, **MODELS[model]},
                "privacy": {"sigma": SIGMA},
            }
        )
        self.device, self.task = device, make(run, np.arange(EXAMPLES), device)
        self.x, self.keys, self.round = (
            self.task.initial_parameters(1),
            Keys.insecure(1, "bench"),
            0,
        )
        self.backend = probe(self.task)

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - start, result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rows(self) -> torch.Tensor:
        uniform = self.keys.stream("batch", self.round, "bench").uniform(EXAMPLES)
        return torch.from_numpy(np.flatnonzero(uniform < BATCH / EXAMPLES))

    def answer(self) -> dict[str, float]:
        """Seconds of one answer's parts; the wire is the copy in and out of bytes."""
        self.round += 1
        sent = self.x.numpy().tobytes()
        came, x = self.seconds(lambda: torch.frombuffer(bytearray(sent), dtype=torch.float32))
        clip, total = self.seconds(
            lambda: clipped_sum(self.task, x, self.rows(), CLIP, backend=self.backend)
        )
        stream = self.keys.stream("noise", self.round, "bench")
        noised, answer = self.seconds(lambda: noise.release(total, SIGMA, CLIP, BATCH, stream))
        left, _ = self.seconds(lambda: answer.numpy().tobytes())
        return {"clip": clip, "noise": noised, "wire": came + left}

    def backends(self, repetitions: int) -> dict[str, float]:
        rows, plain = torch.arange(BATCH), []
        seconds: dict[Backend, list[float]] = {"vmap": [], "loop": []}
        for repetition in range(repetitions + 1):
            plain.append(self.seconds(lambda: mean_gradient(self.task, self.x, rows))[0])
            for backend, times in seconds.items():
                if backend == "loop" and repetition > 2:
                    continue  # it is long, and two tell enough
                clip = partial(clipped_sum, self.task, self.x, rows, CLIP, backend=backend)
                times.append(self.seconds(clip)[0])
        base = statistics.median(plain[1:])
        return {
            "plain_ms": 1000 * base,
            **{name: statistics.median(times[1:]) / base for name, times in seconds.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            json.dumps({"benchmark": "gpu", "skipped": "torch finds no NVIDIA GPU on this machine"})
        )
        return
    device, repetitions = pick(options.device), 3 if options.quick else 15
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    bench = Bench("cnn", device)
    answers = [bench.answer() for _ in range(repetitions + 2)][2:]
    part = {key: statistics.median(row[key] for row in answers) for key in answers[0]}
    second = NODES * sum(part.values())
    rows = {model: Bench(model, device).backends(repetitions) for model in MODELS}
    table = Table(
        "model", "plain ms", "vmap ÷ plain", "loop ÷ plain", title=f"{name}, batch {BATCH}"
    )
    for model, row in rows.items():
        table.add_row(model, *(f"{row[key]:.2f}" for key in ("plain_ms", "vmap", "loop")))
    shares = {key: NODES * value / second for key, value in part.items()}
    console = Console(stderr=True, width=100)
    console.print(
        f"{second:.3f} s of a node's compute per round: "
        f"{', '.join(f'{k} {v:.0%}' for k, v in shares.items())}"
    )
    console.print(table)
    print(
        json.dumps(
            {
                "benchmark": "gpu",
                "device": name,
                "round_seconds": second,
                "shares": shares,
                "backends": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
