"""Runs a few kept cells of docs/results again, drawn at random: are the figures those that this
version of the code comes to?

    python docs/rerun.py FOLDER [CELLS [SEED]]     # FOLDER: build/results, which make fills

A figure is the mean over the nodes of the last five evaluations, as in the tables. Batches and
noise are drawn anew where a cell has privacy, so figures differ by chance; exit code 1 where one is
off by more than TOLERANCE.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from node.encoding import Json
from node.experiments.sweep.trial import run_trial

TOLERANCE = 0.04
"""Of an accuracy: twice the standard deviation over seeds of the tables' noisiest rows."""
MOST_SECONDS = 60.0
"""Of CPU time that a cell took when it was kept: longer ones are left to `make language`, `make
rl`."""
LAST = 5


def figure(record: Json) -> float:
    """The headline metric of a cell, mean of nodes and last evaluations."""
    metrics: Mapping[str, Mapping[str, Sequence[float]]] = record["figures"]["metrics"]
    nodes = metrics[record["figures"]["summary"].get("headline") or "accuracy"]
    return fmean(value for values in nodes.values() for value in values[-LAST:])


def drawn(folder: Path, cells: int, seed: int) -> list[Path]:
    """That many of the kept cells that can be run in a minute."""
    quick = [
        file
        for file in sorted(folder.glob("*/cells/*.json"))
        if read(file)["cpu_seconds"] <= MOST_SECONDS
    ]
    return random.Random(seed).sample(quick, min(cells, len(quick)))


def read(file: Path) -> Json:
    record: Json = json.loads(file.read_text(encoding="utf-8"))
    return record


def main(folder: Path, cells: int = 3, seed: int = 0) -> int:
    """Exit code."""
    off = 0
    for file in drawn(folder, cells, seed):
        kept = read(file)
        again = run_trial(kept["configuration"])
        before, now = figure(kept), figure(again)
        off += abs(now - before) > TOLERANCE
        config = kept["configuration"]
        print(
            f"{file.parents[1].name}/{file.stem[:10]} {config['algorithm']['name']}, "
            f"{config['topology']['kind']} of {config['experiment']['nodes']}, mode "
            f"{config['privacy']['mode']}: kept {before:.3f}, now {now:.3f}"
            f"{'  OFF' if abs(now - before) > TOLERANCE else ''}",
            flush=True,
        )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
