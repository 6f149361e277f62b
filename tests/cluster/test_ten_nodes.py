"""Ten nodes, four of which learn from flipped labels, weigh each other by Shapley values: what
peer_weight_ratio shows.

Played by `simulate`: daemons give the same bits (test_same_bits.py), and show these weights
(test_attackers.py).
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from kit.clusters import events, experiment
from node.experiments.in_process import simulate

ROSS = {"name": "ross", "lr": 0.3, "value": "neg_loss", "smoothing": 0.8}
NAMES = [f"n{k}" for k in range(10)]
LIARS = ("n0", "n2", "n5", "n7")
W = 0.1
"""Everybody's weight on a full graph of ten."""
ROUNDS = 15


def weights(folder: Path, attack: dict[str, object]) -> dict[str, list[dict[str, float]]]:
    """Node -> the weights that it gave its neighbors, round by round."""
    config = experiment(
        kind="full",
        nodes=10,
        rounds=ROUNDS,
        algorithm=ROSS,
        privacy={"mode": "none", "sigma": None},
        experiment={"alpha": 1.0, **attack},
    )
    simulate(config, folder)
    told = {name: events(folder / "nodes" / name, "round") for name in NAMES}
    return {
        name: [event["diagnostics"]["weight"] for event in rounds] for name, rounds in told.items()
    }


def test_attackers_weigh_less_than_anybody_honest(tmp_path: Path) -> None:
    given = weights(tmp_path, {"attack": {"name": "label-flip", "nodes": 4}})
    honest = [name for name in NAMES if name not in LIARS]
    of = {peer: fmean(given[name][-1][peer] for name in honest if name != peer) for peer in NAMES}
    assert max(of[liar] for liar in LIARS) < min(of[peer] for peer in honest), of
    assert fmean(of[liar] for liar in LIARS) < 0.25 * W, of


def test_among_honest_nodes_nobody_is_persecuted(tmp_path: Path) -> None:
    """Over the run. (In one round a neighbor whose data say nothing new may weigh nothing, and
    does.)
    """
    given = weights(tmp_path, {})
    told = {
        peer: [shares[peer] for rounds in given.values() for shares in rounds if peer in shares]
        for peer in NAMES
    }
    assert {len(shares) for shares in told.values()} == {9 * ROUNDS}
    assert min(fmean(shares) for shares in told.values()) > 0.3 * W
