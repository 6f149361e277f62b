"""Ten real daemons, four of which learn from flipped labels, weigh each other by Shapley values:
what /metrics says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from kit.clusters import experiment
from node.config import write
from node.experiments.run_folder import merge

ROSS = {"name": "ross", "lr": 0.3, "value": "neg_loss", "smoothing": 0.8}
LIARS = ("n0", "n2", "n5", "n7")
W = 0.1
"""Everybody's weight on a full graph of ten."""


def played(folder: Path, attack: dict[str, object]) -> dict[str, Path]:
    """`peerpoise up` to its end; the nodes' folders."""
    config = experiment(
        kind="full",
        nodes=10,
        rounds=15,
        algorithm=ROSS,
        privacy={"mode": "none", "sigma": None},
        sync={"deadline_s": 90.0},
        start={"timeout_s": 200.0},
        experiment={"alpha": 1.0, **attack},
    )
    file = folder / "experiment.toml"
    write(config, file)
    call = [
        sys.executable,
        "-P",
        "-m",
        "peerpoise",
        "up",
        str(file),
        "--folder",
        str(folder / "run"),
    ]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=380)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    homes = {name: folder / "run" / "nodes" / name for name in config.experiment.names}
    found = merge(folder / "run", homes)
    assert found is not None
    assert found.complete, (
        f"{sorted(set(homes) - set(found.params_digest))} did not finish: {ended.stdout[-2000:]}"
    )
    assert found.attackers == list(config.experiment.attackers)
    return homes


def gauges(folder: Path, name: str) -> dict[str, float]:
    """ROSS's weights of a node's last scrape."""
    text = (folder / "run" / f"metrics-{name}.txt").read_text()
    return {
        peer: float(value)
        for peer, value in re.findall(
            r'^peerpoise_diagnostic\{name="weight",peer="(n\d)"\} (\S+)', text, re.MULTILINE
        )
    }


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_attackers_weigh_less_than_anybody_honest(tmp_path: Path) -> None:
    homes = played(tmp_path, {"attack": {"name": "label-flip", "nodes": 4}})
    honest = [name for name in homes if name not in LIARS]
    seen = {name: gauges(tmp_path, name) for name in honest}
    of = {peer: fmean(seen[name][peer] for name in honest if name != peer) for peer in homes}
    assert max(of[liar] for liar in LIARS) < min(of[peer] for peer in honest), of
    assert fmean(of[liar] for liar in LIARS) < 0.25 * W, of


@pytest.mark.cluster
@pytest.mark.timeout(420)
@pytest.mark.skipif(
    "HOSTILE" not in os.environ, reason="make hostile runs it: ten daemons for half a minute"
)
def test_among_honest_nodes_nobody_is_persecuted(tmp_path: Path) -> None:
    """Over the run. (In one round a neighbor whose data say nothing new may weigh nothing, and
    does.)
    """
    homes = played(tmp_path, {})
    told: dict[str, list[float]] = {name: [] for name in homes}
    for home in homes.values():
        for line in map(json.loads, (home / "journal.jsonl").read_text().splitlines()):
            for peer, share in (
                line["diagnostics"]["weight"].items() if line["event"] == "round" else ()
            ):
                told[peer].append(share)
    assert {len(shares) for shares in told.values()} == {9 * 15}
    assert min(fmean(shares) for shares in told.values()) > 0.3 * W
