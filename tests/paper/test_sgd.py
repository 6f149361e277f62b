"""Local and centralized SGD against torch.optim.SGD."""

import pytest
import torch

from node.algorithms import Resources, find
from node.algorithms.sgd import Centralized, Local, SgdConfig
from node.rounds import lockstep
from peer.message import Layout
from peer.neighborhood import View
from peer.topology import make_neighborhoods

LAYOUT = Layout((("w", (3, 4)),))


class Regression:
    """½ mean of (a·x − y)² by autograd, on fixed data of one node."""

    def __init__(self, seed):
        chance = torch.Generator().manual_seed(seed)
        self.a, self.y = torch.randn(20, 12, generator=chance), torch.randn(20, generator=chance)

    def loss(self, x):
        return 0.5 * (self.a @ x - self.y).square().mean()

    def __call__(self, x, t, to):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(self.loss(leaf), leaf)[0]

    def own(self, x, t):
        raise AssertionError("in paper mode this would be the clean gradient")


def resources(me, gradients, start):
    return Resources(me=me, layout=LAYOUT, start=start, gradients=gradients)


@pytest.mark.parametrize("algorithm", [Local, Centralized])
@pytest.mark.parametrize(
    "options", [{"beta": 0.0, "weight_decay": 0.0}, {"beta": 0.9, "weight_decay": 5e-4}], ids=str
)
def test_its_steps_have_the_bits_of_torch(algorithm, options):
    neighborhoods, gate = make_neighborhoods("full", ["a"]), Regression(1)
    config = SgdConfig(lr=0.05, lr_decay=0.9, decay_every=10, **options)
    node = algorithm(config, resources("a", gate, torch.ones(12)))
    lockstep.run({"a": node}, neighborhoods, 50)

    x = torch.nn.Parameter(torch.ones(12))
    oracle = torch.optim.SGD(
        [x], lr=0.05, momentum=options["beta"], weight_decay=options["weight_decay"]
    )
    for t in range(50):
        oracle.param_groups[0]["lr"] = 0.05 * 0.9 ** (t // 10)
        oracle.zero_grad()
        gate.loss(x).backward()
        oracle.step()
    assert torch.equal(node.parameters, x.data)


def test_local_says_nothing_and_hears_nothing():
    """Two neighbors: each ends where it would have ended alone."""
    pair, lone = make_neighborhoods("full", ["a", "b"]), make_neighborhoods("full", ["a"])
    ends = []
    for neighborhoods in (pair, lone):
        nodes = {
            i: Local(SgdConfig(), resources(i, Regression(k), torch.zeros(12)))
            for k, i in enumerate(neighborhoods)
        }
        lockstep.run(nodes, neighborhoods, 10)
        ends.append({i: node.parameters for i, node in nodes.items()})
    assert torch.equal(ends[0]["a"], ends[1]["a"])
    assert not torch.equal(ends[0]["a"], ends[0]["b"])
    local = Local(SgdConfig(), resources("a", Regression(0), torch.zeros(12)))
    assert list(local.round(0, View(pair["a"]))) == []


def test_only_centralized_is_pooled():
    pooled = {name: find(name).POOLED for name in ("local", "centralized", "dpdl", "d-psgd")}
    assert pooled == {"local": False, "centralized": True, "dpdl": False, "d-psgd": False}
