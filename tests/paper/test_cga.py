"""CGA (arXiv 2103.02051): the own gradient projected until it agrees with the cross-gradients; v
stays, x is mixed.

The projection itself is tested in tests/maths/test_projection.py.
"""

from itertools import chain, combinations

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
from node.algorithms.cga import Cga, State
from node.rounds.lockstep import exchange
from peer.message import Ask, Mix, Replies

OPTIONS = {"lr": 0.2, "beta": 0.8, "lr_decay": 0.5, "decay_every": 20, "weight_decay": 0.01}
NEIGHBORS = {i: [int(j) for j in NEIGHBORHOODS[str(i)].neighbors] for i in range(N)}


def nearest(g, rows):
    """argmin ½‖z − g‖² s.t. ⟨z, row⟩ ≥ 0: of all choices of active constraints the one that fulfils
    KKT.
    """
    for active in chain.from_iterable(combinations(rows, n) for n in range(len(rows) + 1)):
        a = np.array(active).reshape(len(active), D)
        u = -np.linalg.lstsq(a.T, g, rcond=None)[0] if active else np.zeros(0)
        if (u >= 0).all() and all(row @ (g + a.T @ u) >= -1e-12 for row in rows):
            return g + a.T @ u
    raise AssertionError("no choice fulfils KKT")


def reference(rounds, project=True):
    x, v = START.copy(), np.zeros((N, D))
    for t in range(rounds):
        lr = 0.2 * 0.5 ** (t // 20)
        for i in range(N):
            g = gradient(i, x[i])
            if project:
                g = nearest(g, [gradient(j, x[i]) for j in NEIGHBORS[i]])
            v[i] = 0.8 * v[i] - lr * (g + 0.01 * x[i])
        x = W @ x + v
    return x


def test_it_is_the_reference():
    """Power: without the constraints it leads elsewhere."""
    found = played(cluster(Cga, **OPTIONS), 50)
    np.testing.assert_allclose(found, reference(50), rtol=0, atol=1e-9)
    assert np.abs(found - reference(50, project=False)).max() > 1e-3


def test_the_model_goes_out_gradients_come_back_and_the_model_alone_is_mixed():
    """3·d floats per neighbor in three exchanges; deg + 1 releases, the own one among them."""
    nodes = cluster(Cga)
    talks = {i: nodes[i].round(0, view(i)) for i in NAMES}
    verbs = {i: next(talks[i]) for i in NAMES}
    assert {(type(verb), verb.kind, verb.tensors.numel()) for verb in verbs.values()} == {
        (Ask, "model", D)
    }
    heard = exchange(verbs, NEIGHBORHOODS)
    close(heard["0"]["1"], gradient(1, START[0]))
    mixes = {i: talks[i].send(heard[i]) for i in NAMES}
    assert {(type(verb), verb.kind, verb.tensors.numel()) for verb in mixes.values()} == {
        (Mix, "state", D)
    }
    for i in NAMES:
        close(mixes[i].tensors, START[int(i)])
        assert sorted(to for _, to, _ in nodes[i].gradients.asked) == sorted(
            NEIGHBORHOODS[i].weight
        )
        assert Cga.releases(NEIGHBORHOODS[i].degree) == len(NEIGHBORHOODS[i].weight)


def after(answers, missing=(), **options):
    """The state of node 3 after a round from v = 1 in which it heard these answers, and mixed
    nothing.
    """
    node = cluster(Cga, **{**OPTIONS, **options})["3"]
    node.state = State(x=node.parameters, v=torch.ones(D, dtype=torch.float64))
    talk = node.round(0, view(node.me))
    next(talk)
    mix = talk.send(Replies(answers.items(), missing))
    with pytest.raises(StopIteration):
        talk.send(mix.tensors)
    return node


OWN = gradient(3, START[3])
AGREES = {j: torch.from_numpy(OWN + 0.01) for j in NEIGHBORHOODS["3"].neighbors}


def test_where_all_agree_it_is_momentum_on_the_own_gradient():
    node = after(AGREES)
    close(node.state.v, 0.8 - 0.2 * (OWN + 0.01 * START[3]))
    close(node.state.x, START[3] + node.state.v.numpy())


def test_a_gradient_in_the_way_is_projected_out_and_seen_in_the_diagnostics():
    against = torch.zeros(D, dtype=torch.float64)
    against[0] = -np.sign(OWN[0])
    node = after({**AGREES, "4": against}, beta=0.0, weight_decay=0.0)
    close(node.state.v, np.where(np.arange(D) == 0, 0, -0.2 * OWN))
    told = node.diagnostics()
    assert {j: u > 0 for j, u in told["multiplier"].items()} == {j: j == "4" for j in AGREES}
    assert told["cosine"]["4"] == pytest.approx(-abs(OWN[0]) / np.linalg.norm(OWN))


def test_who_is_not_heard_constrains_nothing():
    there = {j: g for j, g in AGREES.items() if j != "4"}
    node = after(there, missing={"4"})
    assert torch.equal(node.state.v, after(AGREES).state.v)
    assert set(node.diagnostics()["multiplier"]) == set(there)


def test_zero_gradients_leave_mixing_alone():
    node = after(
        {j: torch.zeros(D, dtype=torch.float64) for j in AGREES}, beta=0.0, weight_decay=0.0
    )
    close(node.state.v, -0.2 * OWN)
