"""DMSGD: ṽ = βv + g, x̃ = x − ηṽ, both mixed; one exchange, one release."""

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
from node.algorithms.dmsgd import Dmsgd, State
from peer.message import Mix

OPTIONS = {"lr": 0.2, "beta": 0.8, "lr_decay": 0.5, "decay_every": 20, "weight_decay": 0.01}


def reference(rounds, mix_momentum=True):
    x, v = START.copy(), np.zeros((N, D))
    for t in range(rounds):
        lr = 0.2 * 0.5 ** (t // 20)
        g = gradient(slice(None), x) + 0.01 * x
        v = 0.8 * v + g
        x = x - lr * v
        x = W @ x
        if mix_momentum:
            v = W @ v
    return x


def test_it_is_the_reference():
    """Power: a momentum that stays at home leads elsewhere."""
    found = played(cluster(Dmsgd, **OPTIONS), 50)
    close(found, reference(50))
    assert np.abs(found - reference(50, mix_momentum=False)).max() > 1e-3


def half_way(node):
    """The node's Mix of a round that starts from v = 1."""
    x = node.parameters
    node.state = State(x=x, v=torch.ones_like(x))
    talk = node.round(0, view(node.me))
    return x, next(talk), talk


def test_momentum_and_step():
    node = cluster(Dmsgd, **OPTIONS)["2"]
    x, verb, _ = half_way(node)
    g = gradient(2, x.numpy()) + 0.01 * x.numpy()
    close(verb.tensors[1], 0.8 + g)
    close(verb.tensors[0], x.numpy() - 0.2 * (0.8 + g))


def test_both_are_mixed_and_kept_and_two_models_are_all_that_is_said():
    node = cluster(Dmsgd)["0"]
    _, verb, talk = half_way(node)
    assert (type(verb), verb.kind, [part.numel() for part in verb.tensors]) == (
        Mix,
        "state",
        [D, D],
    )
    x, v = torch.zeros(D), torch.ones(D)
    with pytest.raises(StopIteration):
        talk.send((x, v))
    assert node.state == State(x=x, v=v)


def test_one_release_a_round_at_the_own_model_whatever_the_degree():
    nodes = cluster(Dmsgd)
    played(nodes, 3)
    for i in NAMES:
        assert [(t, to) for t, to, _ in nodes[i].gradients.asked] == [(t, i) for t in range(3)]
        close(nodes[i].gradients.asked[0][2], START[int(i)])
    assert {Dmsgd.releases(NEIGHBORHOODS[i].degree) for i in NAMES} == {1}
