"""QG-DSGDm (arXiv 2102.04761): the momentum follows the mixed model; one exchange of the model, one
release.
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
    resources,
    view,
)
from node.algorithms.qg_dsgdm import QgDsgdm, State
from node.rounds import lockstep
from peer.message import Mix
from peer.topology import make_neighborhoods

OPTIONS = {
    "lr": 0.2,
    "beta": 0.8,
    "mu": 0.7,
    "lr_decay": 0.5,
    "decay_every": 20,
    "weight_decay": 0.01,
}


def reference(rounds, quasi_global=True):
    x, m_hat = START.copy(), np.zeros((N, D))
    for t in range(rounds):
        lr = 0.2 * 0.5 ** (t // 20)
        g = gradient(slice(None), x) + 0.01 * x
        m = 0.8 * m_hat + g
        mixed = W @ (x - lr * m)
        d = (x - mixed) / lr if quasi_global else m
        m_hat = 0.7 * m_hat + 0.3 * d
        x = mixed
    return x


def test_it_is_the_reference():
    """Power: a momentum of the own steps leads elsewhere."""
    found = played(cluster(QgDsgdm, **OPTIONS), 50)
    close(found, reference(50))
    assert np.abs(found - reference(50, quasi_global=False)).max() > 1e-3


def half_way(node):
    """The node's Mix of a round that starts from m̂ = 1."""
    x = node.parameters
    node.state = State(x=x, m=torch.ones_like(x))
    talk = node.round(0, view(node.me))
    return x, next(talk), talk


def test_momentum_and_step_and_the_model_is_all_that_is_said():
    node = cluster(QgDsgdm, **OPTIONS)["2"]
    x, verb, _ = half_way(node)
    m = 0.8 + gradient(2, x.numpy()) + 0.01 * x.numpy()
    assert (type(verb), verb.kind) == (Mix, "model")
    close(verb.tensors, x.numpy() - 0.2 * m)


def test_what_is_remembered_is_the_way_of_the_mixed_model():
    node = cluster(QgDsgdm, **OPTIONS)["2"]
    x, _, talk = half_way(node)
    mixed = torch.arange(7.0, dtype=torch.float64)
    with pytest.raises(StopIteration):
        talk.send(mixed)
    close(node.state.m, 0.7 + 0.3 * (x - mixed) / 0.2)
    assert torch.equal(node.state.x, mixed)


def test_one_release_a_round_at_the_own_model_whatever_the_degree():
    nodes = cluster(QgDsgdm)
    played(nodes, 3)
    for i in NAMES:
        assert [(t, to) for t, to, _ in nodes[i].gradients.asked] == [(t, i) for t in range(3)]
        close(nodes[i].gradients.asked[0][2], START[int(i)])
    assert {QgDsgdm.releases(NEIGHBORHOODS[i].degree) for i in NAMES} == {1}


def test_alone_it_is_quasi_hyperbolic_momentum():
    """h ← ρh + (1−ρ)g with ρ = μ + (1−μ)β;  x ← x − η·(g + β(1−μ)/(1−ρ)·h_before): written out, not
    by the class.
    """
    neighborhoods, beta, mu, lr = make_neighborhoods("full", ["0"]), 0.8, 0.7, 0.2
    config = QgDsgdm.Config(lr=lr, beta=beta, mu=mu, weight_decay=0)
    node = QgDsgdm(config, resources("0"))
    lockstep.run({"0": node}, neighborhoods, 30)

    x, h, rho = START[0].copy(), np.zeros(D), mu + (1 - mu) * beta
    for _ in range(30):
        g = gradient(0, x)
        x = x - lr * (g + beta * (1 - mu) / (1 - rho) * h)
        h = rho * h + (1 - rho) * g
    close(node.parameters, x)


def test_mixing_alone_leaves_no_momentum_in_the_mean():
    """Without gradients the m̂ of all sum to zero, so the mean of x stays; also when edges are lost
    at both ends.
    """
    nodes = cluster(QgDsgdm, weight_decay=0)
    for node in nodes.values():
        node.gradients = lambda x, t, to: torch.zeros_like(x)
    lockstep.run(
        nodes, NEIGHBORHOODS, 5, lossy=lambda t, phase, a, b: t == 2 and {a, b} == {"0", "1"}
    )
    found = np.stack([nodes[i].parameters.numpy() for i in NAMES])
    close(found.mean(0), START.mean(0))
    assert max(float(node.state.m.abs().max()) for node in nodes.values()) > 0.1
