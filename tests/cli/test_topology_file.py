"""A graph from a file: its edges go into the run file, so every node computes the same W and the
digest covers it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.command import Call
from node.config import ExperimentConfig, NodeConfig, RunConfig, load
from node.maths.graph import spectral_gap
from peer.identity.roster import Roster

STAR = "# a star round n1, with its W\nn1 n0 0.25\n\nn1,n2,0.5  # by commas too\nn0 n0 0.75\n"
EDGES = (("n1", "n0", 0.25), ("n1", "n2", 0.5), ("n0", "n0", 0.75))
W = {
    "n0": {"n0": 0.75, "n1": 0.25},
    "n1": {"n0": 0.25, "n1": 0.25, "n2": 0.5},
    "n2": {"n1": 0.5, "n2": 0.5},
}
HOSTS = [word for k, name in enumerate("abc") for word in ("--host", f"{name}=10.0.0.{k + 1}:7443")]


@pytest.fixture
def star(experiment: Path) -> Path:
    """An experiment on the graph of graph.txt beside it."""
    (experiment.parent / "graph.txt").write_text(STAR)
    experiment.write_text(
        experiment.read_text(encoding="utf-8") + '[topology]\nkind = "edges"\nfile = "graph.txt"\n',
        encoding="utf-8",
    )
    return experiment


def test_edges_are_read_beside_the_file_that_names_them(star: Path) -> None:
    config = load(ExperimentConfig, [star], (), {})
    assert config.topology.edges == EDGES
    neighborhoods = config.neighborhoods(config.experiment.names)
    assert {name: neighborhood.weight for name, neighborhood in neighborhoods.items()} == W


def test_the_digest_covers_what_is_in_the_file(star: Path) -> None:
    """With its name alone, or a daemon's own copy, nodes could train on different graphs under one
    run_id.
    """
    before = load(ExperimentConfig, [star], (), {}).run_config.digest
    (star.parent / "graph.txt").write_text(STAR + "n0 n2 0.0001\n")
    assert load(ExperimentConfig, [star], (), {}).run_config.digest != before


def test_packed_runs_carry_the_edges(peerpoise: Call, star: Path, tmp_path: Path) -> None:
    (tmp_path / "graph.txt").write_text("a b\nb c\n")
    assert peerpoise("config", "check", star).code == 0, "hosts are not known yet"
    assert peerpoise("pack", star, *HOSTS, "--out", tmp_path / "out").code == 0
    (tmp_path / "graph.txt").unlink()
    for name in "abc":
        home = tmp_path / "out" / name
        run = load(
            RunConfig, [home / load(NodeConfig, [home / "node.toml"], (), {}).run], environ={}
        )
        roster = Roster.load(home / "roster.json", run.run.federation)
        assert run.neighborhoods(roster.names)["b"].neighbors == ("a", "c")


def test_a_run_says_its_spectral_gap(peerpoise: Call, star: Path, tmp_path: Path) -> None:
    call = (
        "simulate",
        star,
        "--folder",
        tmp_path / "run",
        "--set",
        "train.rounds=1",
        "--set",
        "privacy.mode=none",
    )
    result = peerpoise(*call)
    assert result.code == 0, result.err
    gap = spectral_gap(W)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())[
        "spectral_gap"
    ] == pytest.approx(gap)
    assert f"edges (spectral gap {gap:.2g})" in result.out


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("n0 n1\nn2\n", "graph.txt, line 2: an edge is two names and perhaps a weight, not 'n2'"),
        ("n0 n1 heavy\n", "line 1"),
        ("n0 n1 0.1 0.2\n", "line 1"),
        ("# nothing\n", "needs edges"),
        ("n0 n1\n", "no way leads from n0 to n2"),
        ("n0 n1 0.9\nn1 n2 0.9\n", "has -0.8 for n1–n1"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "up"])
def test_a_bad_file_is_a_sentence(
    peerpoise: Call, star: Path, tmp_path: Path, command: str, text: str, part: str
) -> None:
    (star.parent / "graph.txt").write_text(text, errors="surrogateescape")
    result = peerpoise(command, star, "--folder", tmp_path / "run")
    assert (result.code, result.err.count("\n")) == (78, 1), result.err
    assert part in result.err
    assert not (tmp_path / "run").exists()


def test_edges_of_others_are_refused_where_the_nodes_are_known(
    peerpoise: Call, star: Path, tmp_path: Path
) -> None:
    (star.parent / "graph.txt").write_text("a b\nb c\n")
    result = peerpoise("simulate", star, "--folder", tmp_path / "run")
    assert result.code == 78
    assert "names a, which is not a node; there are n0, n1, n2" in result.err


def test_a_random_graph_follows_the_seed_of_training(experiment: Path) -> None:
    settings = ["topology.kind=erdos-renyi", "experiment.nodes=12"]
    found = [
        load(ExperimentConfig, [experiment], [*settings, f"train.seed={seed}"], {})
        for seed in (1, 1, 2)
    ]
    one, same, other = (config.neighborhoods(config.experiment.names) for config in found)
    assert one == same != other
