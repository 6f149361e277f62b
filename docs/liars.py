"""What liars cost FGRPO by how neighbors are weighed: runs the table of docs/reasoning.md, and
prints it.

    python docs/liars.py FOLDER                     # all of it; what FOLDER has is not run again
    python docs/liars.py FOLDER audited/subtle      # one cell, named weights/liar

All cells are six real daemons, and begin with one model, that of fgrpo-liar after its warm-up.
Shown is the mean over honest nodes of the probability of the right answer; and of each audited
cell, what the verdicts were.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "deploy" / "examples" / "fgrpo-liar.toml"
WARM_UP, ROUNDS, LIAR = 250, 24, "n5"
FLIP = ('name="sign-flip"', 'words=["state"]', "vectors=[0]")
LIARS = {
    "nobody": (),
    "gross": (*FLIP, "factor=3.0"),
    "subtle": (*FLIP, "factor=0.5"),
    "idle": ('name="free-rider"',),
    "noise": ('name="free-rider"', 'update="noise"'),
    "hacker": ('name="reward-hack"', 'pays="wrong"'),
}
CLAIM = ("claim=1000.0", "claim_growth=2.0")
BELIEVING = ("pull=0", "norm_bound=1e9")
WEIGHTS = {
    "uniform": ('weights="uniform"', *BELIEVING),
    "raw-gain": ('weights="raw-gain"', *BELIEVING),
    "reported": ('gain="reported"', *BELIEVING),
    "audited": (),
}


def run(command: str, folder: Path, settings: Iterable[str]) -> None:
    """Runs fgrpo-liar with these settings, unless the folder has what came out."""
    if (folder / "summary.json").exists():
        return
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = [command, str(EXAMPLE), "--folder", str(folder), *options]
    peerpoise(*arguments)


def peerpoise(*arguments: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "peerpoise", *arguments], check=True, cwd=ROOT)


def warm_up(folder: Path) -> Path:
    """The model that all cells begin with, a folder."""
    start = folder / "start"
    run("simulate", folder / "warm-up", (f"train.rounds={WARM_UP}", "experiment.attack="))
    if not start.exists():
        peerpoise("export", str(folder / "warm-up"), "--out", str(start))
    return start


def cell(folder: Path, start: Path, weights: str, liar: str) -> None:
    attack = (f'nodes=["{LIAR}"]', *LIARS[liar], *CLAIM) if LIARS[liar] else ()
    settings = [
        f"task.model={start}",
        "algorithm.warmup.rounds=0",
        f"train.rounds={ROUNDS}",
        f"train.evaluate_every={ROUNDS}",
        *(f"algorithm.{setting}" for setting in WEIGHTS[weights]),
        "experiment.attack=",
        *(f"experiment.attack.{setting}" for setting in attack),
    ]
    run("up", folder / f"{weights}-{liar}", settings)


def reward(folder: Path) -> float | None:
    """Mean over honest nodes; None: it was not run."""
    file = folder / "summary.json"
    if not file.exists():
        return None
    mean: float = json.loads(file.read_text(encoding="utf-8"))["task_metrics"]["reward"]["mean"]
    return mean


def table(folder: Path) -> str:
    lines = [f"| | {' | '.join(WEIGHTS)} |", "|---|" + "---|" * len(WEIGHTS)]
    for liar in LIARS:
        rewards = [reward(folder / f"{weights}-{liar}") for weights in WEIGHTS]
        shown = ["not run" if each is None else f"{each:.3f}" for each in rewards]
        lines.append(f"| {liar} | {' | '.join(shown)} |")
    return "\n".join(lines)


def verdicts(folder: Path) -> str:
    """By how many of the honest the liar was convicted in each round; how many of these verdicts
    stand at a z above −3; and the verdicts on others.
    """
    of_liar, standing, others = [0] * ROUNDS, 0, [0, 0]
    for journal in sorted(folder.glob("nodes/*/journal.jsonl")):
        if journal.parent.name == LIAR:
            continue
        for t, diagnostics in enumerate(rounds(journal)):
            for peer, verdict in diagnostics["convicted"].items():
                if peer == LIAR:
                    of_liar[t] += int(verdict)
                    standing += int(verdict and diagnostics["gain"][LIAR] >= -3)
                else:
                    others[int(verdict)] += 1
    by_round = " ".join(map(str, of_liar))
    above = f"{standing} of {sum(of_liar)} at z above −3"
    return f"{LIAR} {by_round}, {above}; of {sum(others)} others {others[1]}"


def rounds(journal: Path) -> list[dict[str, dict[str, float]]]:
    """A node's diagnostics, round by round."""
    events = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return [event["diagnostics"] for event in events if event["event"] == "round"]


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    start = warm_up(folder)
    names = sys.argv[2:] or [f"{weights}/{liar}" for weights in WEIGHTS for liar in LIARS]
    for name in names:
        cell(folder, start, *name.split("/"))
    print(table(folder))
    for liar in LIARS:
        if reward(folder / f"audited-{liar}") is not None:
            print(f"{liar}: convicted {verdicts(folder / f'audited-{liar}')}")
