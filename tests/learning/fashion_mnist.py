"""Does it learn? Three settings on Fashion-MNIST (MLP 784-64-10, β 0.9), each method with its own tuned learning rate.

few      N = 5, ring, Dirichlet 0.25, T = 300, B = 64, no noise: DPDL beside momentum SGD on the union of the batches
many     N = 20, ring, Dirichlet 0.1, T = 150, B = 64, no noise: DPDL beside DMSGD and plain cross-averaging
private  N = 10, ring, Dirichlet 0.25, T = 100, q = 256/6000, ε_total 8 and 2 at δ = 1e-5: strict DPDL beside DP-DMSGD
         and DP-xavg

The learning rate is chosen on one extra seed by the accuracy on a fifth of the TRAINING images, held out; then three
seeds on all training images are scored on the test images: mean over the last five evaluations (every 10 rounds), of
the mean over nodes and of the worst node. A seed sets partition, parameters and batches; noise is fresh. Tuning on
private data would cost budget of its own: it is not in the ε that is shown.

    python tests/learning/fashion_mnist.py [--out FOLDER] [--quick]      resumable; Markdown tables on stdout

About an hour of one core; --quick: a minute, few rounds, a check that it runs. Needs the Fashion-MNIST files (see
node/data/idx.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from node import data
from node.config import ExperimentConfig, TaskSection
from node.experiment import simulate
from peer.errors import PeerpoiseError

SEEDS, TUNING_SEED, LATE = (1, 2, 3), 100, 5
MEAN, STD = (0.2860,), (0.3530,)
"""Of all training pixels: published, and not a secret of any node."""
CLEAN, NOISED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5), (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Methods that are compared."""

    title: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    nodes: int
    alpha: float
    rounds: int
    epsilon: float | None = None

    def config(self, method: str, lr: float, seed: int, held_out: Path | None, quick: bool) -> ExperimentConfig:
        """`held_out`: a file of the training images, a fifth of which is tested on."""
        clear = {"mode": "none", "batch": 64}
        noised = {"mode": "strict", "epsilon": self.epsilon, "delta": 1e-5, "rate": 256 / 6000, "batch": 256}
        where = {"data": "file", "path": held_out} if held_out else {"data": "fashion-mnist"}
        return ExperimentConfig(
            algorithm={"name": method, "lr": lr, "beta": 0.9},
            topology={"kind": "ring"},
            task={"model": "mlp", "hidden": 64, "mean": MEAN, "std": STD, **where},
            train={
                "rounds": 10 if quick else self.rounds,
                "seed": seed,
                "evaluate_every": 10,
                "checkpoint_every": 1000,
            },
            privacy=noised if self.epsilon else clear,
            experiment={"nodes": self.nodes, "alpha": self.alpha, "seed": seed},
        )  # type: ignore[arg-type]


SETTINGS = {
    "few": Setting(title="5 nodes, no noise", methods=("dpdl", "dmsgd", "xavg", "centralised", "local"), rates=CLEAN,
                   nodes=5, alpha=0.25, rounds=300),
    "many": Setting(title="20 nodes, no noise", methods=("dpdl", "dmsgd", "xavg", "qg-dsgdm", "centralised"),
                    rates=CLEAN, nodes=20, alpha=0.1, rounds=150),
    **{f"private-{epsilon}": Setting(title=f"10 nodes, ε_total {epsilon} (strict, add/remove one example, δ 1e-5, "
                                     "independent batches, PLD, against any coalition)",
                                     methods=("dpdl", "dp-xavg", "dp-dmsgd"), rates=NOISED, nodes=10, alpha=0.25,
                                     rounds=100, epsilon=epsilon) for epsilon in (8, 2)},
}  # fmt: skip


def accuracy(folder: Path) -> dict[str, float]:
    """Of each node, the mean of its last evaluations."""
    found = {}
    for journal in sorted(folder.glob("nodes/*/journal.jsonl")):
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        late = [line["accuracy"] for line in lines if line["event"] == "test"][-LATE:]
        found[journal.parent.name] = statistics.fmean(late)
    return found


def play(name: str, method: str, lr: float, seed: int, out: Path, held_out: Path | None, quick: bool) -> dict[str, Any]:
    """One run's figures; kept in `out`, so that a second call is free."""
    kept = out / f"{name}-{method}-{lr:g}-{seed}{'-tuning' if held_out else ''}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            config = SETTINGS[name].config(method, lr, seed, held_out, quick)
            summary = simulate(config, Path(folder))
            each = list(accuracy(Path(folder)).values())
        figures = {"lr": lr, "mean": statistics.fmean(each), "worst": min(each), "wall_seconds": summary.wall_seconds,
                   "sigma": summary.privacy.sigma, "epsilon": summary.privacy.epsilon.total}  # fmt: skip
        kept.write_text(json.dumps(figures))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def held_out(out: Path) -> Path:
    path = out / "training-images.npz"
    if not path.exists():
        train, _ = data.public(TaskSection(data="fashion-mnist"))
        np.savez(path, x=train.x.numpy(), y=train.y.numpy())
    return path


def table(name: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    setting = SETTINGS[name]
    lines = [
        f"### {setting.title}",
        "",
        "| method | lr | mean of the nodes | worst node | ε_total |",
        "|---|---|---|---|---|",
    ]
    for method, found in rows.items():
        mean, worst = (column(found, key) for key in ("mean", "worst"))
        spent = found[0]["epsilon"]
        lines.append(
            f"| {method} | {found[0]['lr']:g} | {mean} | {worst} | {'–' if spent is None else f'{spent:.2f}'} |"
        )
    return "\n".join([*lines, ""])


def column(found: list[dict[str, Any]], key: str) -> str:
    values = [100 * it[key] for it in found]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/learning"), help="where runs are kept")
    parser.add_argument("--only", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    parser.add_argument("--quick", action="store_true", help="ten rounds, two rates, one seed")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        held_out(options.out)
    except PeerpoiseError as error:
        print(f"{'skipped: ' if options.quick else ''}{error}")
        raise SystemExit(0 if options.quick else error.exit_code) from None
    seeds = SEEDS[:1] if options.quick else SEEDS
    with Progress() as bar:
        work = bar.add_task("runs", total=sum(
            len(SETTINGS[name].methods) * ((2 if options.quick else len(SETTINGS[name].rates)) + len(seeds))
            for name in options.only))  # fmt: skip
        for name in options.only:
            rows, rates = {}, SETTINGS[name].rates[2:4] if options.quick else SETTINGS[name].rates
            for method in SETTINGS[name].methods:
                tuned = []
                for lr in rates:
                    found = play(name, method, lr, TUNING_SEED, options.out, held_out(options.out), options.quick)
                    tuned.append(found)
                    bar.advance(work)
                best = max(tuned, key=lambda it: it["mean"])["lr"]
                rows[method] = []
                for seed in seeds:
                    rows[method].append(play(name, method, best, seed, options.out, None, options.quick))
                    bar.advance(work)
            print(table(name, rows), flush=True)


if __name__ == "__main__":
    main()
