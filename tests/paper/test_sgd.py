"""Local and centralized SGD against torch.optim.SGD; and SGD on the public examples alone."""

import numpy as np
import pytest
import torch

from node.algorithms import ALGORITHMS, Resources, find
from node.algorithms.sgd import Centralized, Local, SgdConfig
from node.config import AlgorithmSection, ExperimentConfig, PrivacySection
from node.experiments.in_process import simulate
from node.experiments.resolve import resolve
from node.learning.build import build
from node.learning.warnings import DECLARED, PUBLIC_ONLY, STARTED
from node.privacy.ledger import Ledger
from node.records import checkpoint
from node.rounds import lockstep
from peer.errors import ConfigurationError
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


def test_only_centralized_and_public_are_pooled():
    assert {name for name in ALGORITHMS if find(name).POOLED} == {"centralized", "public"}


def public(size=50, **train):
    return ExperimentConfig.model_validate(
        {
            "algorithm": {"name": "public"},
            "train": {"rounds": 3, "evaluate_every": 0, **train},
            "privacy": {"mode": "none", "batch": 20},
            "validation": {"size": size},
            "experiment": {"nodes": 3},
        }
    )


def test_public_learns_from_the_validation_set_and_from_no_row_of_a_node(tmp_path):
    resolved = resolve(public())
    nodes = resolve(public().model_copy(update={"algorithm": AlgorithmSection(name="xavg")}))
    private = np.concatenate(list(nodes.parts.values()))
    [rows] = resolved.parts.values()
    assert len(rows) == 50
    assert not np.intersect1d(rows, private).size
    assert simulate(public(), tmp_path / "run").complete


def test_what_public_learned_starts_a_run_and_adds_no_epsilon(tmp_path):
    simulate(public(), tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    _, x = checkpoint.load_model(model)
    strict = PrivacySection(sigma=2.0)
    warned = {}
    for declared in (False, True):
        config = public(start=model, public_start=declared)
        config = config.model_copy(
            update={"algorithm": AlgorithmSection(name="muffliato"), "privacy": strict}
        )
        resolved = resolve(config)
        learner = build(
            resolved.plan, "n0", resolved.parts["n0"], ledger=Ledger.in_memory(), sigma=2.0
        )
        assert torch.equal(learner.algorithm.parameters, x)
        assert len(resolved.run.train.start_digest) == 64
        warned[declared] = STARTED in (resolved.plan.warning or "")
        assert (DECLARED in (resolved.plan.warning or "")) == declared
    assert warned == {False: True, True: False}
    from_private = resolve(public(start=model))
    assert from_private.plan.warning == STARTED, "it does not say: nobody's private examples"
    assert resolve(public()).plan.warning == PUBLIC_ONLY


def test_public_is_refused_where_there_is_nothing_public_or_something_private():
    with pytest.raises(ConfigurationError, match=r"set validation\.size"):
        resolve(public(size=None))
    strict = public().model_copy(update={"privacy": PrivacySection(sigma=2.0)})
    with pytest.raises(ConfigurationError, match="nothing to protect"):
        resolve(strict)
