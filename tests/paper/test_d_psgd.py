"""D-PSGD (arXiv 1705.09056): x_i ← Σ_j w_ij x_j − η g_i(x_i); one Mix, one release."""

import pytest
import torch

from kit.golden import EQUATIONS, close, vector
from node.algorithms import Resources
from node.algorithms.d_psgd import DPsgd, DPsgdConfig
from node.rounds import lockstep
from peer.message import Layout, Mix
from peer.neighborhood import Neighborhood, View
from peer.topology import make_neighborhoods

LAYOUT = Layout((("w", (7,)),))


class GradientGate:
    """Gives g to oneself; the clean own gradient is not to be touched. Notes at which x it was
    asked, and for whom.
    """

    def __init__(self, g):
        self.g, self.asked = g, []

    def __call__(self, x, t, to):
        self.asked.append((x.clone(), t, to))
        return self.g.clone()

    def own(self, x, t):
        raise AssertionError("in paper mode this would be the clean gradient")


def resources(me, gradients, start):
    return Resources(me=me, layout=LAYOUT, start=start, gradients=gradients)


def six():
    """The six nodes of the golden mixing case, with gradients 1, 2, … at x̃."""
    names = [str(i) for i in range(6)]
    rows = EQUATIONS["metropolis"]["W"]
    nodes, neighborhoods = {}, {}
    for i, row, x in zip(names, rows, EQUATIONS["mix"]["x_tilde"], strict=True):
        neighborhoods[i] = Neighborhood(
            me=i, weight={j: w for j, w in zip(names, row, strict=True) if w}, nodes=6
        )
        gate = GradientGate(torch.full((7,), float(i) + 1, dtype=torch.float64))
        nodes[i] = DPsgd(DPsgdConfig(lr=0.5), resources(i, gate, vector(x)))
    return nodes, neighborhoods


def test_one_round_mixes_then_steps():
    nodes, neighborhoods = six()
    lockstep.run(nodes, neighborhoods, 1)
    for i, mixed in enumerate(EQUATIONS["mix"]["mixed"]):
        close(nodes[str(i)].parameters + 0.5 * (i + 1), mixed)


def test_the_gradient_is_taken_at_the_own_model_before_mixing():
    nodes, neighborhoods = six()
    lockstep.run(nodes, neighborhoods, 1)
    for i, x in enumerate(EQUATIONS["mix"]["x_tilde"]):
        [(at, t, to)] = nodes[str(i)].gradients.asked
        close(at, x)
        assert (t, to) == (0, str(i))


def test_the_mixed_model_goes_out_unstepped_and_is_all_that_is_said():
    """d floats per neighbor; the gradient enters what the neighbors see one round later."""
    nodes, neighborhoods = six()
    talk = nodes["0"].round(0, View(neighborhoods["0"]))
    verb = next(talk)
    assert (type(verb), verb.kind) == (Mix, "model")
    close(verb.tensors, EQUATIONS["mix"]["x_tilde"][0])
    with pytest.raises(StopIteration):
        talk.send(torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["ring", "full"])
def test_one_release_a_round_whatever_the_degree(kind):
    names = [f"n{i}" for i in range(6)]
    neighborhoods = make_neighborhoods(kind, names)
    gates = {i: GradientGate(torch.ones(7)) for i in names}
    nodes = {i: DPsgd(DPsgdConfig(), resources(i, gates[i], torch.zeros(7))) for i in names}
    lockstep.run(nodes, neighborhoods, 4)
    assert all(
        [(t, to) for _, t, to in gates[i].asked] == [(t, i) for t in range(4)] for i in names
    )
    assert {DPsgd.releases(neighborhoods[i].degree) for i in names} == {1}


def test_weight_decay_and_the_schedule():
    neighborhoods = make_neighborhoods("full", ["a"])
    config = DPsgdConfig(lr=0.1, lr_decay=0.5, decay_every=1, weight_decay=0.01)
    node = DPsgd(config, resources("a", GradientGate(torch.ones(7)), torch.ones(7)))
    lockstep.run({"a": node}, neighborhoods, 2)
    x = 1 - 0.1 * 1.01
    x = x - 0.05 * (1 + 0.01 * x)
    torch.testing.assert_close(node.parameters, torch.full((7,), x))
