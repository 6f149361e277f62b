"""What curious neighbors learn of private records: runs the tables of
docs/results/privacy-attacks.md, and prints them.

    python docs/attacks.py inversion     # ten minutes of one core
    python docs/attacks.py membership    # half an hour
    python docs/attacks.py inversion --quick

All of it is simulated, on four nodes that learn handwritten digits (scikit-learn's) by quickstart's
file, in each privacy mode.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from node.audit.inversion import Attack, Inversion, invert
from node.audit.membership import Membership, infer
from node.audit.modes import in_mode, modes_of
from node.config import ExperimentConfig, load
from node.experiments.resolve import ResolvedRun, resolve

EXAMPLE = Path(__file__).parents[1] / "deploy" / "examples" / "quickstart.toml"
INVERTED = ("task.model=mlp",)
INFERRED = ("privacy.rate=0.1", "privacy.batch=18", "train.rounds=30", "algorithm.lr=1.0")
"""Small batches, and steps that learn records by heart where nothing hinders them."""
ATTACKS: tuple[tuple[Attack, int], ...] = (("trap", 1), ("trap", 8), ("optimized", 1))


def runs(settings: tuple[str, ...]) -> Iterator[ResolvedRun]:
    """The experiment in each of its modes."""
    config = load(ExperimentConfig, [EXAMPLE], list(settings), environ={})
    for mode in modes_of(config):
        yield resolve(in_mode(config, mode))


def inversion_row(result: Inversion) -> str:
    return (
        f"| {result.mode} | {result.attack} | {result.batch} | {result.rounds} | "
        f"{result.recovered} of {result.records} | {result.correlation:.2f} | "
        f"{result.chance:.2f} | {result.auc:.2f} |"
    )


def inversion(quick: bool) -> None:
    print(
        "| mode | attack | records | answers | recovered | correlation | chance | AUC |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for resolved in runs((*INVERTED, "train.rounds=4") if quick else INVERTED):
        for attack, batch in ATTACKS:
            records = 8 if quick else 32
            print(inversion_row(invert(resolved, attack, batch=batch, records=records, seed=1)))


def membership_rows(result: Membership) -> Iterator[str]:
    for rate in result.rates:
        yield (
            f"| {result.mode} | {result.watcher} | {result.auc:.3f} | "
            f"{rate.false_positives:.1%} | {rate.true_positives:.1%} | "
            f"{rate.low:.1%} … {rate.high:.1%} | {rate.bound:.1%} |"
        )


def membership(quick: bool) -> None:
    print(
        "| mode | watcher | AUC | FPR | TPR | 95 % | no more than |\n|---|---|---|---|---|---|---|"
    )
    for resolved in runs((*INFERRED, "train.rounds=4") if quick else INFERRED):
        for result in infer(resolved, runs=4 if quick else 20, records=359, seed=1):
            print(*membership_rows(result), sep="\n", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tables = {"inversion": inversion, "membership": membership}
    tables[sys.argv[1]]("--quick" in sys.argv)
