"""Muffliato-SGD (arXiv 2206.05091): one noised gradient step, then K rounds of accelerated
gossip.
"""

import random

import numpy as np
import pytest
import torch

from kit.quadratics import NAMES, NEIGHBORHOODS, START, D, W, close, cluster, gradient, played, view
from node.algorithms.muffliato import Muffliato, acceleration
from node.config import ExperimentConfig
from node.experiments.resolve import resolve
from node.learning.plan import Plan
from node.maths.graph import spectral_gap
from node.rounds import lockstep
from peer.errors import ConfigurationError
from peer.message import Mix, step
from peer.topology import make_neighborhoods

GAP = spectral_gap({i: NEIGHBORHOODS[i].weight for i in NAMES})
OPTIONS = {"lr": 0.2, "lr_decay": 0.5, "decay_every": 20, "weight_decay": 0.01, "spectral_gap": GAP}


def reference(rounds, k, gap=GAP, accelerate=True):
    gamma = 2 * (1 - np.sqrt(gap * (1 - gap / 4))) / (1 - gap / 2) ** 2 if accelerate else 1.0
    x = START.copy()
    for t in range(rounds):
        last = x - 0.2 * 0.5 ** (t // 20) * (gradient(slice(None), x) + 0.01 * x)
        x = W @ last
        for _ in range(k - 1):
            last, x = x, gamma * W @ x + (1 - gamma) * last
    return x


@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_is_the_reference(k):
    """Power: plain gossip leads elsewhere, as soon as there is anything to accelerate."""
    found = played(cluster(Muffliato, **OPTIONS, gossip=k), 50)
    close(found, reference(50, k))
    assert (np.abs(found - reference(50, k, accelerate=False)).max() > 1e-4) == (k > 1)


def test_one_release_a_round_and_k_models_are_all_that_is_said():
    nodes = cluster(Muffliato, **OPTIONS, gossip=4)
    played(nodes, 3)
    for i in NAMES:
        assert [(t, to) for t, to, _ in nodes[i].gradients.asked] == [(t, i) for t in range(3)]
    assert {Muffliato.releases(NEIGHBORHOODS[i].degree) for i in NAMES} == {1}
    talk, said = nodes["0"].round(3, view("0")), []
    verb = step(talk)
    while verb is not None:
        assert isinstance(verb.tensors, torch.Tensor)
        said.append((type(verb), verb.kind, verb.tensors.numel()))
        verb = step(talk, verb.tensors)
    assert said == [(Mix, "gossip", D)] * 4


# --- the gossip -----------------------------------------------------------------------------------


def spread(kind, n, k, accelerate=True):
    """What is left of the distance from the mean after K gossip rounds, at most: ‖p_K(W) −
    11ᵀ/N‖.
    """
    neighborhoods = make_neighborhoods(kind, names := [f"n{i:02}" for i in range(n)])
    w = np.array([[neighborhoods[i].weight.get(j, 0.0) for j in names] for i in names])
    gamma = (
        acceleration(spectral_gap({i: neighborhoods[i].weight for i in names}))
        if accelerate
        else 1.0
    )
    last, now = np.eye(n), w
    for _ in range(k - 1):
        last, now = now, gamma * w @ now + (1 - gamma) * last
    return np.linalg.norm(now - 1 / n, 2)


@pytest.mark.parametrize(
    ("kind", "n"), [("ring", 10), ("ring", 30), ("grid", 16), ("star", 10), ("bipartite", 10)]
)
def test_the_formulas_k_averages_far_better_than_plain_gossip(kind, n):
    neighborhoods = make_neighborhoods(kind, [f"n{i:02}" for i in range(n)])
    options = Muffliato.Config().on_graph(
        spectral_gap({i: h.weight for i, h in neighborhoods.items()}), n
    )
    assert spread(kind, n, options.gossip) < min(
        0.5, 0.8 * spread(kind, n, options.gossip, accelerate=False)
    )


def test_on_a_full_graph_one_exchange_is_exact():
    assert spread("full", 10, 1) < 1e-12
    assert acceleration(1.0) == pytest.approx(8 - 4 * np.sqrt(3))


@pytest.mark.parametrize("gap", [1e-4, 0.01, 0.13, 0.5, 1.0])
def test_whatever_w_becomes_it_never_averages_worse_than_not_at_all(gap):
    """|p_k(z)| ≤ 1 for every eigenvalue z in [−1, 1]: γ of another graph, as when an edge is away
    for a round.
    """
    gamma, z = acceleration(gap), np.linspace(-1, 1, 2001)
    assert gamma < 2
    last, now = np.ones_like(z), z
    for _ in range(60):
        last, now = now, gamma * z * now + (1 - gamma) * last
        assert np.abs(now).max() <= 1 + 1e-9
        assert now[-1] == pytest.approx(1, abs=1e-12), "the mean is kept"


def test_the_mean_is_kept_when_edges_come_and_go_at_both_ends():
    nodes = cluster(Muffliato, gossip=5, spectral_gap=GAP)
    for node in nodes.values():
        node.gradients = lambda x, t, to: torch.zeros_like(x)
    lockstep.run(
        nodes,
        NEIGHBORHOODS,
        3,
        lossy=lambda t, phase, *ends: random.Random(f"{t} {phase} {sorted(ends)}").random() < 0.3,
    )
    found = np.stack([nodes[i].parameters.numpy() for i in NAMES])
    close(found.mean(0), START.mean(0))
    assert found.std(0).max() < 0.5 * START.std(0).max()


def test_a_header_lost_at_one_end_moves_the_mean_further_than_in_a_plain_mix():
    """By (1 − (γ−1)^K)/(2−γ), at most 1/(2−γ)."""

    def drift(k):
        nodes = cluster(Muffliato, gossip=k, spectral_gap=GAP)
        for node in nodes.values():
            node.gradients = lambda x, t, to: torch.zeros_like(x)
        lockstep.run(
            nodes, NEIGHBORHOODS, 1, lossy=lambda t, phase, a, b: (phase, a, b) == (0, "0", "1")
        )
        return np.mean([nodes[i].parameters.numpy() for i in NAMES], axis=0) - START.mean(0)

    more = acceleration(GAP) - 1
    assert np.abs(drift(1)).max() > 1e-3
    for k in (2, 3, 9):
        np.testing.assert_allclose(drift(k), drift(1) * (1 - more**k) / (1 - more), rtol=1e-9)


# --- what follows from the graph ------------------------------------------------------------------


def test_k_and_the_gap_are_taken_from_the_graph_unless_they_are_given():
    assert Muffliato.Config().on_graph(0.25, 10).gossip == 5  # ln 10 / 0.5 = 4.6
    assert Muffliato.Config().on_graph(1.0, 1).gossip == 1
    assert Muffliato.Config().on_graph(0.123456789, 10).spectral_gap == 0.123457
    given = Muffliato.Config(gossip=2, spectral_gap=0.5, lr=0.3)
    assert given.on_graph(0.1, 10) == given
    with pytest.raises(ConfigurationError, match="the spectral gap of this W is 0"):
        Muffliato.Config().on_graph(1e-16, 4)


def test_every_node_of_a_run_finds_them_and_the_run_file_holds_them():
    run = ExperimentConfig.model_validate(
        {
            "algorithm": {"name": "muffliato"},
            "privacy": {"mode": "none"},
            "topology": {"kind": "ring"},
        }
    )
    neighborhoods = run.neighborhoods([f"n{i}" for i in range(10)])
    plan = Plan.of(run, neighborhoods)
    assert isinstance(plan.options, Muffliato.Config)
    assert plan.options.gossip == 7
    assert plan.options.spectral_gap == pytest.approx(plan.spectral_gap, rel=1e-5)
    written = resolve(run, list(neighborhoods)).pinned()
    assert written.algorithm.options["gossip"] == 7
    assert written.digest != resolve(run, [f"n{i}" for i in range(9)]).pinned().digest
    assert Plan.of(written, neighborhoods).options == plan.options
    alone = Plan.of(run, {}).options
    assert isinstance(alone, Muffliato.Config)
    assert alone.gossip is None
