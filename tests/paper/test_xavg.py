"""Plain cross-averaging: π = w, momentum, x and v mixed. The control for what weighs
cross-gradients.
"""

import numpy as np
import pytest
import torch

from kit.quadratics import (
    NAMES,
    NEIGHBORHOODS,
    START,
    D,
    N,
    W,
    close,
    cluster,
    gradient,
    played,
    view,
)
from node.algorithms.dpdl import Dpdl
from node.algorithms.xavg import Xavg, mean
from node.rounds import lockstep
from node.rounds.lockstep import exchange
from peer.message import Ask, Mix, Replies
from peer.topology import make_neighborhoods

OPTIONS = {"lr": 0.2, "beta": 0.8, "lr_decay": 0.5, "decay_every": 20, "weight_decay": 0.01}


def reference(rounds, cross=True):
    x, v = START.copy(), np.zeros((N, D))
    for t in range(rounds):
        lr = 0.2 * 0.5 ** (t // 20)
        g = np.zeros((N, D))
        for i in range(N):
            for j in range(N):
                g[i] += W[i, j] * gradient(j, x[i] if cross else x[j])
        v = 0.8 * v + g + 0.01 * x
        x = x - lr * v
        x, v = W @ x, W @ v
    return x


def test_it_is_the_reference():
    """Power: gradients of the neighbors at their own models lead elsewhere."""
    found = played(cluster(Xavg, **OPTIONS), 50)
    close(found, reference(50))
    assert np.abs(found - reference(50, cross=False)).max() > 1e-3


def test_the_model_goes_out_gradients_come_back_and_both_states_are_mixed():
    """4·d floats per neighbor in three exchanges; deg + 1 releases, the own one among them."""
    nodes = cluster(Xavg)
    talks = {i: nodes[i].round(0, view(i)) for i in NAMES}
    verbs = {i: next(talks[i]) for i in NAMES}
    assert {(type(verb), verb.kind, verb.tensors.numel()) for verb in verbs.values()} == {
        (Ask, "model", D)
    }
    heard = exchange(verbs, NEIGHBORHOODS)
    close(heard["0"]["1"], gradient(1, START[0]))
    states = {i: talks[i].send(heard[i]) for i in NAMES}
    assert {(type(s), s.kind, *(part.numel() for part in s.tensors)) for s in states.values()} == {
        (Mix, "state", D, D)
    }
    for i in NAMES:
        assert sorted(to for _, to, _ in nodes[i].gradients.asked) == sorted(
            NEIGHBORHOODS[i].weight
        )
        assert Xavg.releases(NEIGHBORHOODS[i].degree) == len(NEIGHBORHOODS[i].weight)


def test_the_gradient_is_the_mean_by_w():
    cross = {
        j: torch.full((D,), float(j) + 1, dtype=torch.float64) for j in NEIGHBORHOODS["3"].weight
    }
    expected = sum(W[3, int(j)] * (float(j) + 1) for j in cross)
    close(mean(NEIGHBORHOODS["3"].weight, cross), np.full(D, expected))


def test_who_is_not_heard_leaves_a_mean_of_those_who_are():
    """Also in the round: with one answer missing the step is that of the weights renormalized."""
    node = cluster(Xavg, **OPTIONS)["3"]
    talk = node.round(0, view("3"))
    next(talk)
    there = [j for j in NEIGHBORHOODS["3"].neighbors if j != "4"]
    mix = talk.send(
        Replies(((j, torch.from_numpy(gradient(int(j), START[3]))) for j in there), {"4"})
    )
    weight = {j: W[3, j] for j in (3, *map(int, there))}
    g = sum(w * gradient(j, START[3]) for j, w in weight.items()) / sum(weight.values())
    close(mix.tensors[1], g + 0.01 * START[3])
    everybody = {j: torch.ones(D, dtype=torch.float64) for j in NEIGHBORHOODS["3"].weight}
    alone = {"3": everybody["3"]}
    close(mean(NEIGHBORHOODS["3"].weight, alone), np.ones(D))


@pytest.mark.parametrize("rounds", [1, 10])
def test_on_a_full_graph_it_is_dpdl_without_its_own_weights(rounds):
    """α = 0 and the scale normalized leave the plain mean: what DPDL adds is the rest."""
    neighborhoods, found = make_neighborhoods("full", NAMES), []
    for algorithm, options in ((Xavg, {}), (Dpdl, {"alpha": 0.0, "scale": "normalized"})):
        nodes = cluster(algorithm, lr=0.1, **options)
        for i in NAMES:
            nodes[i].gradients.own = lambda x, t, i=i: torch.from_numpy(gradient(int(i), x.numpy()))
        lockstep.run(nodes, neighborhoods, rounds)
        found.append(np.stack([nodes[i].parameters.numpy() for i in NAMES]))
    close(*found)
