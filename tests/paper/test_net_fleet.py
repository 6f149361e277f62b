"""NET-FLEET (arXiv 2208.08490): y tracks the mean gradient by differences on one batch; x and y are
mixed.
"""

from typing import Any

import numpy as np
import pytest
import torch

from kit.quadratics import (
    CURVE,
    LAYOUT,
    NAMES,
    NEIGHBORHOODS,
    OPTIMUM,
    START,
    D,
    GradientGate,
    N,
    W,
    close,
    cluster,
    gradient,
    played,
    resources,
    view,
)
from node.algorithms import Resources
from node.algorithms.d_psgd import DPsgd
from node.algorithms.net_fleet import NetFleet
from node.rounds import lockstep
from peer.message import Mix, Withheld
from peer.topology import make_neighborhoods

OPTIONS = {"lr": 0.1, "lr_decay": 0.5, "decay_every": 20, "weight_decay": 0.01}
forms = pytest.mark.parametrize("mix_steps", [False, True])


class Tracking(GradientGate):
    """Also gives differences, and notes them."""

    def difference(self, x, before, t):
        self.asked.append((t, "difference", x.clone(), before.clone()))
        return torch.from_numpy(
            gradient(int(self.me), x.numpy()) - gradient(int(self.me), before.numpy())
        )


def fleet(gate=Tracking, **options):
    nodes = cluster(NetFleet, **options)
    for i, node in nodes.items():
        node.gradients = gate(i)
    return nodes


def reference(rounds, mix_steps=False, track=True):
    x, y, last = START.copy(), np.zeros((N, D)), np.zeros((N, D))
    for t in range(rounds):
        lr = 0.1 * 0.5 ** (t // 20)
        g = gradient(slice(None), x)
        y = y + g - last if track else g
        last = g
        step = lr * (y + 0.01 * x)
        x = W @ (x - step) if mix_steps else W @ x - step
        y = W @ y
    return x


@forms
def test_it_is_the_reference(mix_steps):
    """Power: without tracking, on the own gradient, it leads elsewhere."""
    found = played(fleet(**OPTIONS, mix_steps=mix_steps), 50)
    np.testing.assert_allclose(found, reference(50, mix_steps), rtol=0, atol=1e-12)
    assert np.abs(found - reference(50, mix_steps, track=False)).max() > 1e-3
    assert np.abs(found - reference(50, not mix_steps)).max() > 1e-3


@pytest.mark.parametrize("restart", [pytest.param(0, marks=pytest.mark.long), 1, 7])
def test_with_a_constant_step_all_reach_the_optimum_of_the_mean(restart):
    """What D-PSGD does not on data that differ: the point of the method."""
    best = (CURVE * OPTIMUM).sum(0) / CURVE.sum(0)
    found = played(fleet(lr=0.1, restart=restart), 1500)
    np.testing.assert_allclose(found, np.tile(best, (N, 1)), rtol=0, atol=1e-6)
    assert np.abs(played(cluster(DPsgd, lr=0.1), 1500) - best).max() > 0.05


def test_y_tracks_the_mean_gradient_of_all():
    """Σ y = Σ s = Σ ∇f_i(x_i) after every round, and the y of all come together."""
    nodes = fleet(lr=0.1)
    lockstep.run(nodes, NEIGHBORHOODS, 60)
    y, s = (np.stack([getattr(nodes[i].state, name).numpy() for i in NAMES]) for name in "ys")
    before = np.stack([nodes[i].state.before.numpy() for i in NAMES])
    close(s, gradient(slice(None), before))
    close(y.sum(0), s.sum(0))
    assert np.ptp(y, axis=0).max() < 0.2 * np.ptp(s, axis=0).max()


def test_the_first_round_asks_for_a_gradient_and_each_later_one_for_the_difference_to_the_last_model():
    nodes = fleet(lr=0.1)
    seen = {i: [nodes[i].parameters.clone()] for i in NAMES}

    def note(t):
        for i in NAMES:
            seen[i].append(nodes[i].parameters.clone())

    lockstep.run(nodes, NEIGHBORHOODS, 4, after_round=note)
    for i in NAMES:
        first, *later = nodes[i].gradients.asked
        assert first[:2] == (0, i)
        assert torch.equal(first[2], seen[i][0])
        assert [(t, what) for t, what, *_ in later] == [(t, "difference") for t in (1, 2, 3)]
        for t, _, x, before in later:
            assert torch.equal(x, seen[i][t])
            assert torch.equal(before, seen[i][t - 1])
    assert {NetFleet.releases(NEIGHBORHOODS[i].degree) for i in NAMES} == {1}


def test_two_models_are_all_that_is_said():
    node = fleet(lr=0.1)["2"]
    verb = next(node.round(0, view("2")))
    assert (type(verb), verb.kind, [part.numel() for part in verb.tensors]) == (
        Mix,
        "state",
        [D, D],
    )
    close(verb.tensors[0], START[2])
    close(verb.tensors[1], gradient(2, START[2]))
    verb = next(fleet(lr=0.1, mix_steps=True)["2"].round(0, view("2")))
    close(verb.tensors[0], START[2] - 0.1 * gradient(2, START[2]))


def test_restarts_ask_for_gradients():
    nodes = fleet(lr=0.1, restart=3)
    lockstep.run(nodes, NEIGHBORHOODS, 8)
    asked = [(t, what) for t, what, *_ in nodes["1"].gradients.asked]
    assert asked == [(t, "1" if t % 3 == 0 else "difference") for t in range(8)]


class Noise(GradientGate):
    """No gradient at all, noise of variance 1 on every release."""

    def __init__(self, me):
        super().__init__(me)
        self.chance = np.random.default_rng(int(me))

    def __call__(self, x, t, to):
        return torch.from_numpy(self.chance.normal(size=x.shape))

    def difference(self, x, before, t):
        return self(x, t, self.me)


@pytest.mark.parametrize(("restart", "variance"), [(0, 40), (1, 1), (4, 4)])
def test_noise_adds_up_until_the_next_restart(restart, variance):
    """Round 39 is the last of a block of 4: s then holds the noise of so many releases."""
    layout, start = type(LAYOUT)((("w", (2000,)),)), torch.zeros(2000, dtype=torch.float64)
    neighborhoods = make_neighborhoods("ring", NAMES)
    gates: dict[str, Any] = {i: Noise(i) for i in NAMES}
    nodes = {
        i: NetFleet(
            NetFleet.Config(lr=0.1, restart=restart),
            Resources(me=i, layout=layout, start=start, gradients=gates[i]),
        )
        for i in NAMES
    }
    lockstep.run(nodes, neighborhoods, 40)
    s = torch.stack([nodes[i].state.s for i in NAMES])
    assert float(s.var()) == pytest.approx(variance, rel=0.05)
    torch.testing.assert_close(torch.stack([nodes[i].state.y for i in NAMES]).sum(0), s.sum(0))


class Spent(Tracking):
    """A budget that ends after ten rounds and is there again from round 20 on."""

    def __call__(self, x, t, to):
        return super().__call__(x, t, to) * (t not in range(10, 20))

    def difference(self, x, before, t):
        found = super().difference(x, before, t)
        if t in range(10, 20):
            raise Withheld
        return found


def test_a_node_whose_release_is_withheld_takes_its_gradient_out_of_y():
    """Alone it stays where it is, and starts anew with a gradient; its last y would push it on for
    ever.
    """
    neighborhoods = make_neighborhoods("full", ["0"])
    gate = Spent("0")
    node = NetFleet(NetFleet.Config(lr=0.1), resources("0", gate))
    seen = []
    lockstep.run(
        {"0": node}, neighborhoods, 30, after_round=lambda t: seen.append(node.parameters.clone())
    )
    assert not torch.equal(seen[8], seen[9])
    for t in range(10, 20):
        close(seen[t], seen[9])
    assert [(t, what) for t, what, *_ in gate.asked if t >= 10] == [
        (10, "difference"),
        *((t, "0") for t in range(11, 21)),
        *((t, "difference") for t in range(21, 30)),
    ]
    close(node.state.s, gradient(0, seen[28].numpy()))


def test_among_others_too_what_is_withheld_leaves_the_sum():
    nodes = fleet(lr=0.1)
    nodes["2"].gradients = Spent("2")
    lockstep.run(nodes, NEIGHBORHOODS, 15)
    y, s = (np.stack([getattr(nodes[i].state, name).numpy() for i in NAMES]) for name in "ys")
    assert not s[2].any()
    close(y.sum(0), s.sum(0))
