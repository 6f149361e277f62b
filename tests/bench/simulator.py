"""What a node costs the plain driver, by how many there are: N = 4 … 64 on a ring.

So every node has two neighbors.

CPU time of `node.rounds.lockstep` per node and round, everything in it: gradients, noise, ledger in
memory, messages, mixing. Every node has as many examples, whatever N. All sizes are measured in
turn, and each against N = 4 of the same turn.

cheap    D-PSGD without noise, softmax regression on 8×8 images: hardly more than the driver itself.
private  strict DPDL, the same model: cross-gradients, noise, debits.
large    D-PSGD without noise, an MLP of 50,890 parameters: what copies and caches cost.

    python tests/bench/simulator.py [--quick]     table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from node.config import RunConfig
from node.learning.build import build
from node.learning.learner import Learner
from node.learning.plan import Plan
from node.privacy.ledger import Ledger
from node.rounds import lockstep

SIZES = (4, 8, 16, 32, 64)
EXAMPLES = 350
"""Of each node; nodes share the bundled data set's."""
ROUNDS = 10**6
"""More than are played: no debit is refused for coming after the end."""
NONE, STRICT = {"mode": "none", "batch": 32}, {"sigma": 2.2, "rate": 0.1, "batch": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "cheap": {"algorithm": {"name": "d-psgd"}, "privacy": NONE},
    "private": {"algorithm": {"name": "dpdl", "lr": 0.1}, "privacy": STRICT},
    "large": {
        "algorithm": {"name": "d-psgd"},
        "privacy": NONE,
        "task": {"model": "mlp", "image_size": 28},
    },
}


class Nodes:
    """So many learners on a ring, warm."""

    def __init__(self, setting: str, n: int) -> None:
        run = RunConfig(train={"rounds": ROUNDS}, **SETTINGS[setting])  # type: ignore[arg-type]
        self.n, self.t = n, 0
        self.plan = Plan.of(run, run.neighborhoods([f"n{i:02}" for i in range(n)]))
        self.learners = {name: self._learner(name) for name in self.plan.neighborhoods}
        self.milliseconds(2)

    def _learner(self, name: str) -> Learner:
        rows = np.random.default_rng(int(name[1:])).permutation(1400)[:EXAMPLES]
        ledger = None if self.plan.run.privacy.mode == "none" else Ledger.in_memory()
        return build(self.plan, name, rows, ledger=ledger)

    def milliseconds(self, rounds: int) -> float:
        """CPU per node and round; goes on where the last call ended."""
        start, self.t = self.t, self.t + rounds
        algorithms = {name: it.algorithm for name, it in self.learners.items()}
        began = time.thread_time()
        lockstep.run(algorithms, self.plan.neighborhoods, self.t, first=start)
        return 1000 * (time.thread_time() - began) / rounds / self.n


def measure(setting: str, turns: int, node_rounds: int) -> list[dict[str, Any]]:
    """One row per size; `node_rounds`: rounds × nodes that each size plays in a turn."""
    sizes = [Nodes(setting, n) for n in SIZES]
    turned = [[nodes.milliseconds(node_rounds // nodes.n) for nodes in sizes] for _ in range(turns)]
    return [
        {
            "setting": setting,
            "nodes": n,
            "cpu_ms": statistics.median(turn[k] for turn in turned),
            "ratio": statistics.median(turn[k] / turn[0] for turn in turned),
            "ratio_quartiles": [
                float(np.quantile([turn[k] / turn[0] for turn in turned], q)) for q in (0.25, 0.75)
            ],
        }
        for k, n in enumerate(SIZES)
    ]


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("setting", "nodes", "CPU ms per node and round", "ratio to 4", "quartiles")
    for row in rows:
        low, high = row["ratio_quartiles"]
        figures = [f"{row['cpu_ms']:.2f}", f"{row['ratio']:.2f}", f"{low:.2f} – {high:.2f}"]
        table.add_row(row["setting"], str(row["nodes"]), *figures)
    Console(stderr=True, width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = 3 if options.quick else 9
    rows = [
        row
        for setting in SETTINGS
        for row in measure(setting, turns, 128 if options.quick else 256)
    ]
    show(rows)
    print(json.dumps({"benchmark": "simulator", "rows": rows}))


if __name__ == "__main__":
    main()
