"""ROSS and PDSL, equation by equation, and whole rounds against a reference in NumPy."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch

from kit.quadratics import (
    NAMES,
    NEIGHBORHOODS,
    OPTIMUM,
    START,
    D,
    N,
    W,
    close,
    gradient,
    resources,
    view,
)
from node.algorithms.pdsl import Pdsl, PdslConfig
from node.algorithms.ross import Ross
from node.rounds import lockstep
from node.rounds.lockstep import exchange
from peer.message import Ask, Mix, Replies, step

CENTRE = OPTIMUM.mean(0)
EXACT = {
    "value": "neg_loss",
    "null_players": "paper",
    "weight_decay": 0.01,
    "lr": 0.1,
    "beta": 0.8,
    "lr_decay": 0.5,
    "decay_every": 10,
}


def loss(x):
    """What the validation set says of a model."""
    return float(((x - CENTRE) ** 2).sum())


class UtilityOracle:
    def around(self, x, moves, kind):
        return lambda shares: [-loss((x + share @ moves).numpy()) for share in shares]

    def gradient(self, x):
        return 2 * (x - torch.from_numpy(CENTRE))

    def now(self):
        return 0.0


def cluster(algorithm=Ross, **options):
    config = algorithm.Config(**options)
    return {i: algorithm(config, resources(i, utility=UtilityOracle())) for i in NAMES}


def played(nodes, rounds):
    lockstep.run(nodes, NEIGHBORHOODS, rounds)
    return np.stack([nodes[i].parameters.numpy() for i in NAMES])


def finish(talk, answers):
    """The round from the answers on; what is mixed stays as it is."""
    step(talk, talk.send(answers).tensors)


def phi_of(x, g, step):
    """Shapley values of the gradients g {j: [D]} at x, by the definition."""
    v = {}
    for size in range(len(g) + 1):
        for S in combinations(sorted(g), size):
            v[S] = -loss(x - step * np.mean([g[j] for j in S], 0)) if S else -loss(x)
    k = len(g)
    found = {}
    for j in g:
        others = [p for p in sorted(g) if p != j]
        found[j] = sum(
            factorial(size)
            * factorial(k - size - 1)
            / factorial(k)
            * (v[tuple(sorted((*S, j)))] - v[S])
            for size in range(k)
            for S in combinations(others, size)
        )
    return found


def reference(rounds, rho=0.0, momentum=True, lr=0.1, beta=0.8):
    x, v = START.copy(), np.zeros((N, D))
    smooth: list[dict[int, float]] = [{} for _ in range(N)]
    for t in range(rounds):
        eta, new = lr * 0.5 ** (t // 10), np.zeros((N, D))
        for i in range(N):
            g = {j: gradient(j, x[i]) for j in range(N) if W[i, j]}
            phi = phi_of(x[i], g, eta)
            smooth[i] = {j: rho * smooth[i].get(j, phi[j]) + (1 - rho) * phi[j] for j in phi}
            raised = {j: max(smooth[i][j], 0) * W[i, j] for j in phi}
            total = sum(raised.values())
            pi = {j: raised[j] / total if total else W[i, j] for j in phi}
            new[i] = sum(pi[j] * g[j] for j in g)
        v = beta * v + new + 0.01 * x
        x = W @ (x - eta * v)
        v = W @ v if momentum else v
    return x


def test_it_is_the_reference():
    found = played(cluster(**EXACT), 25)
    close(found, reference(25))
    assert np.abs(found - reference(25, rho=0.5)).max() > 1e-6, "power: smoothing would show"


@pytest.mark.parametrize(("options", "changes"), [
    ({"smoothing": 0.5}, {"rho": 0.5}),
    ({"mix_momentum": False}, {"momentum": False}),
])  # fmt: skip
def test_its_options_are_the_references(options, changes):
    close(played(cluster(**EXACT, **options), 25), reference(25, **changes))


def test_pdsl_with_all_coalitions_is_ross_on_what_the_door_gives():
    one = played(cluster(Pdsl, **EXACT, estimator="exact", smoothing=0.0), 10)
    close(one, played(cluster(Ross, **EXACT), 10))


def test_pdsl_samples_and_smooths_by_default():
    config = PdslConfig()
    assert (config.estimator, config.permutations, config.antithetic) == ("permutations", 10, True)
    assert config.smoothing == 0.9
    assert np.abs(played(cluster(Pdsl, **EXACT), 3) - reference(3)).max() > 1e-6


@pytest.mark.parametrize("algorithm", [Ross, Pdsl])
def test_the_model_goes_out_gradients_come_back_and_both_states_are_mixed(algorithm):
    """4·d floats per neighbor in three exchanges; deg + 1 releases, the own one among them and
    through the same gate as all (in PDSL j = i is noised)."""
    nodes = cluster(algorithm)
    talks = {i: nodes[i].round(0, view(i)) for i in NAMES}
    verbs = {i: next(talks[i]) for i in NAMES}
    assert {(type(verb), verb.kind, verb.tensors.numel()) for verb in verbs.values()} == {
        (Ask, "model", D)
    }
    heard = exchange(verbs, NEIGHBORHOODS)
    states = {i: talks[i].send(heard[i]) for i in NAMES}
    assert {(type(s), s.kind, *(part.numel() for part in s.tensors)) for s in states.values()} == {
        (Mix, "state", D, D)
    }
    for i in NAMES:
        assert sorted(to for _, to, _ in nodes[i].gradients.asked) == sorted(
            NEIGHBORHOODS[i].weight
        )
        assert algorithm.releases(NEIGHBORHOODS[i].degree) == len(NEIGHBORHOODS[i].weight)


def test_who_is_not_heard_is_no_player():
    node = cluster(**EXACT)["3"]
    talk = node.round(0, view("3"))
    next(talk)
    there = [j for j in NEIGHBORHOODS["3"].neighbors if j != "4"]
    mix = talk.send(
        Replies(((j, torch.from_numpy(gradient(int(j), START[3]))) for j in there), {"4"})
    )
    g = {j: gradient(j, START[3]) for j in (3, *map(int, there))}
    raised = {j: max(phi, 0) * W[3, j] for j, phi in phi_of(START[3], g, 0.1).items()}
    expected = sum(raised[j] * g[j] for j in g) / sum(raised.values()) + 0.01 * START[3]
    close(mix.tensors[1], expected)
    step(talk, mix.tensors)
    assert "4" not in node.diagnostics()["weight"]


def test_a_poisonous_gradient_weighs_nothing_and_an_honest_one_its_part():
    """The reverse of the honest gradient: φ < 0, so π = 0."""
    node = cluster(**EXACT)["3"]
    talk = node.round(0, view("3"))
    next(talk)
    liar = NEIGHBORHOODS["3"].neighbors[0]
    towards = {j: torch.from_numpy(START[3] - CENTRE) for j in NEIGHBORHOODS["3"].neighbors}
    towards[liar] = -towards[liar]
    finish(talk, Replies(towards.items()))
    weight = node.diagnostics()["weight"]
    assert weight[liar] == 0
    assert min(value for j, value in weight.items() if j != liar) > 0.1
    assert node.diagnostics()["shapley"][liar] < 0
    assert sum(weight.values()) <= 1


@pytest.mark.parametrize("algorithm", [Ross, Pdsl])
def test_where_everybody_adds_something_it_is_the_paper_s_form(algorithm):
    options = {**EXACT, "smoothing": 0.0} | ({"estimator": "exact"} if algorithm is Pdsl else {})
    for null_players in ("paper", "capped"):
        close(
            played(cluster(algorithm, **options | {"null_players": null_players}), 10),
            reference(10),
        )


@pytest.mark.parametrize("null_players", ["capped", "paper"])
@pytest.mark.parametrize("says", ["zeros", "a whisper", "the model"])
def test_who_adds_nothing_weighs_its_share_at_most(says, null_players):
    """Where the other's and the own gradients hurt, which is when the paper's form gives it nearly
    all the weight.
    """
    node = cluster(**EXACT | {"null_players": null_players})["3"]
    x = torch.from_numpy(START[3])
    node.gradients = lambda *given: torch.from_numpy(CENTRE - START[3]) + 0.1 * torch.arange(D)
    talk = node.round(0, view("3"))
    next(talk)
    hurts = {j: torch.from_numpy(CENTRE - START[3]) for j in NEIGHBORHOODS["3"].neighbors}
    liar = NEIGHBORHOODS["3"].neighbors[0]
    hurts[liar] = {
        "zeros": torch.zeros_like(x),
        "a whisper": 1e-6 * torch.ones_like(x),
        "the model": x.clone(),
    }[says]
    finish(talk, Replies(hurts.items()))
    weight = node.diagnostics()["weight"]
    if null_players == "paper":
        assert weight[liar] > 0.9, "power"
    else:
        assert weight[liar] <= W[3, int(liar)] + 1e-12
    assert sum(weight.values()) <= 1 + 1e-12


def test_the_state_keeps_the_smoothed_values():
    nodes = cluster(**EXACT, smoothing=0.5)
    lockstep.run(nodes, NEIGHBORHOODS, 2)
    for i in NAMES:
        assert nodes[i].state.phi.keys() == NEIGHBORHOODS[i].weight.keys()
