"""What curious neighbors learn of private records: runs the tables of
docs/results/privacy-attacks.md, and prints them.

    python docs/attacks.py inversion     # some two minutes of one core
    python docs/attacks.py fashion       # as long; needs Fashion-MNIST
    python docs/attacks.py membership    # some three minutes
    python docs/attacks.py inversion --quick

All of it is simulated, in each privacy mode: on four nodes that learn handwritten digits
(scikit-learn's) by quickstart's file, or on ten that learn Fashion-MNIST by private's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from node.audit.inversion import Attack, Inversion, invert
from node.audit.membership import Membership, infer
from node.audit.modes import in_mode, modes_of
from node.config import ExperimentConfig, load
from node.experiments.resolve import ResolvedRun, resolve

EXAMPLES = Path(__file__).parents[1] / "deploy" / "examples"
INVERTED = ("quickstart.toml", "task.model=mlp")
OF_768 = ("train.rounds=150", "privacy.rate=0.128", "privacy.batch=768")
FASHION = ("private.toml", "algorithm={name='dpdl', lr=1.0}", *OF_768)
INFERRED = ("quickstart.toml", "train.rounds=20")
ATTACKS: tuple[tuple[Attack, int], ...] = (("trap", 1), ("trap", 8), ("optimized", 1))


def runs(settings: tuple[str, ...]) -> Iterator[ResolvedRun]:
    """An example with these settings, in each of its modes."""
    example, *changes = settings
    config = load(ExperimentConfig, [EXAMPLES / example], changes, environ={})
    for mode in modes_of(config):
        yield resolve(in_mode(config, mode))


def inversion_row(result: Inversion) -> str:
    return (
        f"| {result.mode} | {result.attack} | {result.batch} | {result.rounds} | "
        f"{result.recovered} of {result.records} | {result.correlation:.2f} | "
        f"{result.chance:.2f} | {result.auc:.2f} |"
    )


def inversion(settings: tuple[str, ...], quick: bool) -> None:
    print(
        "| mode | attack | records | answers | recovered | correlation | chance | AUC |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for resolved in runs((*settings, "train.rounds=4") if quick else settings):
        for attack, batch in ATTACKS:
            records = 8 if quick else 32
            result = invert(resolved, attack, batch=batch, records=records, seed=1)
            print(inversion_row(result), flush=True)


def membership_rows(result: Membership) -> Iterator[str]:
    for rate in result.rates:
        yield (
            f"| {result.mode} | {result.watcher} | {result.auc:.3f} | "
            f"{rate.false_positives:.1%} | {rate.true_positives:.1%} | "
            f"{rate.low:.1%} … {rate.high:.1%} | {rate.bound:.1%} |"
        )


def membership(settings: tuple[str, ...], quick: bool) -> None:
    print(
        "| mode | watcher | AUC | FPR | TPR | 95 % | no more than |\n|---|---|---|---|---|---|---|"
    )
    for resolved in runs((*settings, "train.rounds=4") if quick else settings):
        for result in infer(resolved, runs=4 if quick else 40, records=100, seed=1):
            print(*membership_rows(result), sep="\n", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tables = {
        "inversion": partial(inversion, INVERTED),
        "fashion": partial(inversion, FASHION),
        "membership": partial(membership, INFERRED),
    }
    tables[sys.argv[1]]("--quick" in sys.argv)
