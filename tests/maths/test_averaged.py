"""What is evaluated may be an average of the models; what is exchanged is not changed by it."""

import pytest
import torch

from kit.toys import Listened, cluster, results
from node.learning.averaged import last_model
from node.records import checkpoint
from node.rounds import lockstep

OPTIONS = {"gossip": 2, "spectral_gap": 0.4}
BETA = 0.8


def played(**options):
    """(nodes, what each said) after eight rounds."""
    nodes, neighborhoods = cluster(("muffliato", {**OPTIONS, **options}), "ring", n=5)
    heard = {i: Listened(a) for i, a in nodes.items()}
    lockstep.run(heard, neighborhoods, 8)
    return nodes, [part for i in sorted(heard) for part in heard[i].said]


def test_the_average_changes_what_is_shown_and_nothing_that_is_said():
    plain, said = played()
    averaged, as_said = played(average=BETA)
    assert all(torch.equal(a, b) for a, b in zip(said, as_said, strict=True))
    assert not torch.equal(results(plain), results(averaged))


def test_it_is_the_papers_average_of_the_models_of_each_round():
    nodes, neighborhoods = cluster(("muffliato", OPTIONS), "ring", n=5)
    expected = {i: a.parameters.double() for i, a in nodes.items()}

    def after_round(t):
        beta = min(BETA, (1 + t) / (10 + t))
        for i, a in nodes.items():
            expected[i] = beta * expected[i] + (1 - beta) * a.parameters.double()

    lockstep.run(nodes, neighborhoods, 8, after_round=after_round)
    averaged, _ = played(average=BETA)
    torch.testing.assert_close(
        results(averaged).double(),
        torch.stack([expected[i] for i in sorted(expected)]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_checkpoint_holds_the_average_beside_the_model(tmp_path):
    nodes, _ = played(average=BETA)
    fresh, _ = cluster(("muffliato", {**OPTIONS, "average": BETA}), "ring", n=5)
    checkpoint.save(tmp_path, 7, nodes["n0"].state)
    loaded = checkpoint.latest(tmp_path, type(fresh["n0"].state), pytest.fail)
    assert loaded is not None
    fresh["n0"].state = loaded.state
    assert torch.equal(fresh["n0"].parameters, nodes["n0"].parameters)
    assert torch.equal(fresh["n0"].state.of["x"], nodes["n0"].state.of["x"])


def test_it_is_the_last_model_that_may_have_diverged():
    nodes, _ = played(average=BETA)
    plain, _ = played()
    for name, each in nodes.items():
        assert torch.equal(last_model(each), plain[name].parameters)
        assert torch.equal(last_model(plain[name]), plain[name].parameters)
