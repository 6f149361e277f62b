"""DPDL (arXiv 2606.04399), one test per equation and per sentence about it."""

from itertools import product
from math import e, log, sqrt
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.rdp import RdpAccountant

from kit.golden import EQUATIONS, close, layout, neighborhood, vector, vectors
from node.algorithms import Resources
from node.algorithms.dpdl import Dpdl, DpdlConfig, State, scale
from node.maths.cosine import calibration, cosine
from node.maths.materialized import clip_and_sum
from node.rounds import lockstep
from node.rounds.lockstep import exchange
from peer.message import Ask, Layout, Mix, Replies
from peer.neighborhood import Neighborhood, View
from peer.topology import make_neighborhoods, metropolis

CASES = ("dpdl", "dpdl_missing_neighbor", "dpdl_zero_answer")
VARIANTS = tuple(product(CASES, ("strict", "paper"), ("vector", "tensor"), ("paper", "normalized")))
SMALL = Layout((("w", (2, 2)), ("b", (3,))))


class Given:
    """A gate that gives the vectors of a golden case: released ones, and the own one of the
    mode.
    """

    def __init__(self, case, mode):
        self.case, self.mode, self.asked = case, mode, []

    def __call__(self, x, t, to):
        self.asked.append(to)
        return vector(self.case["cross"][to])

    def own(self, x, t):
        return (
            self(x, t, str(self.case["me"]))
            if self.mode == "strict"
            else vector(self.case["own_clean"])
        )


def golden(name, mode, granularity, scale):
    """A node in the case's state, and what is expected of it."""
    case = EQUATIONS[name]
    options = {key: case[key] for key in ("alpha", "beta", "lr", "weight_decay")}
    config = DpdlConfig(**options, granularity=granularity, scale=scale)
    gradients: Any = Given(case, mode)
    given = Resources(
        me=str(case["me"]), layout=layout(case), start=vector(case["x"]), gradients=gradients
    )
    node = Dpdl(config, given)
    node.state = State(x=vector(case["x"]), v=vector(case["v"]))
    return node, case, case[f"{mode}/{granularity}/{scale}"]


def played(node, case):
    """The node's Mix, after it heard the case's answers; and its conversation."""
    talk = node.round(0, View(neighborhood(case)))
    next(talk)
    others = {j: g for j, g in vectors(case["cross"]).items() if j != str(case["me"])}
    return talk.send(Replies(others.items(), map(str, case["missing"]))), talk


class Quadratic:
    """f(x) = ½‖x − c‖², without privacy; notes who was served."""

    def __init__(self, c, me):
        self.c, self.me, self.served = c, me, []

    def __call__(self, x, t, to):
        self.served.append((t, to))
        return x - self.c

    def own(self, x, t):
        return x - self.c

    def difference(self, x, before, t):
        raise NotImplementedError

    def within(self, x, block):
        raise NotImplementedError


def cluster(kind="full", n=4, d=7, **options):
    names = [f"n{i}" for i in range(n)]
    neighborhoods = make_neighborhoods(kind, names)
    gates = {name: Quadratic(torch.full((d,), float(k)), name) for k, name in enumerate(names)}
    start = torch.zeros(d)
    nodes = {
        i: Dpdl(
            DpdlConfig(**options),
            Resources(me=i, layout=SMALL, start=start, gradients=gates[i]),
        )
        for i in names
    }
    return nodes, neighborhoods, gates


def bipartite(n):
    """Complete even–odd bipartite graph."""
    names = [f"n{i}" for i in range(n)]
    rows = metropolis({a: frozenset(names[1 - i % 2 :: 2]) for i, a in enumerate(names)})
    return {name: Neighborhood(me=name, weight=row, nodes=n) for name, row in rows.items()}


# --- equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip_mean", "clip_mean_nonfinite"])
def test_equations_1_and_2_clip_each_example_and_noise_the_sum(name):
    """(Σ_b ĝ_b + z)/B with B a public constant, not the 6 examples there are; a non-finite example
    counts zero.
    """
    case = EQUATIONS[name]
    rows = [
        [float("nan") if value is None else value for value in row] for row in case["per_example"]
    ]
    clipped = clip_and_sum({"w": torch.tensor(rows, dtype=torch.float64)}, case["C"])[0]["w"]
    close((clipped + vector(case["z_on_sum"])) / case["B"], case["result"])
    assert case["B"] != len(rows)


@pytest.mark.parametrize(("mode", "uses"), [("strict", "cross"), ("paper", "own_clean")])
def test_equation_3_own_is_the_noised_release_in_strict_mode_and_the_clean_gradient_in_paper_mode(
    mode, uses
):
    """Power: each mode's vectors are missed by the other's own gradient."""
    node, case, expected = golden("dpdl", mode, "vector", "paper")
    cross = vectors(case["cross"])
    own = cross["1"] if uses == "cross" else vector(case["own_clean"])
    wrong = vector(case["own_clean"]) if uses == "cross" else cross["1"]
    decay = case["weight_decay"] * vector(case["x"])
    close(node.aggregate(neighborhood(case), cross, own) + decay, expected["g"])
    assert (
        node.aggregate(neighborhood(case), cross, wrong) + decay - vector(expected["g"])
    ).abs().max() > 0.1


@pytest.mark.parametrize(("name", "mode", "granularity", "scale"), VARIANTS)
def test_equation_4_calibration(name, mode, granularity, scale):
    node, case, expected = golden(name, mode, granularity, scale)
    played(node, case)
    wanted = {j: c if isinstance(c, list) else [c] for j, c in expected["calibration"].items()}
    assert node.similarity.keys() == wanted.keys(), (
        "𝒞_ii is computed too, and none for who is missing"
    )
    for j, similarities in node.similarity.items():
        assert [calibration(s) for s in similarities] == pytest.approx(wanted[j], abs=1e-12)


@pytest.mark.parametrize(("name", "mode", "granularity", "scale"), VARIANTS)
def test_equation_5_aggregate_and_weight_decay(name, mode, granularity, scale):
    node, case, expected = golden(name, mode, granularity, scale)
    own = node.gradients.own(vector(case["x"]), 0)
    close(
        node.aggregate(neighborhood(case), vectors(case["cross"]), own)
        + case["weight_decay"] * vector(case["x"]),
        expected["g"],
    )


@pytest.mark.parametrize(("name", "mode", "granularity", "scale"), VARIANTS)
def test_equation_6_momentum_and_tentative_model(name, mode, granularity, scale):
    """With both terms of a missing neighbor dropped, w and N unchanged."""
    node, case, expected = golden(name, mode, granularity, scale)
    mix, _ = played(node, case)
    x, v = mix.tensors
    close(v, expected["v_tilde"])
    close(x, expected["x_tilde"])


@pytest.mark.parametrize("layers", ["one vector", "a tuple"])
def test_equation_7_mixing(layers):
    graph, case = EQUATIONS["metropolis"], EQUATIONS["mix"]
    names = [str(i) for i in range(graph["n"])]
    neighborhoods = {
        i: Neighborhood(
            me=i, weight={j: w for j, w in zip(names, row, strict=True) if w}, nodes=len(names)
        )
        for i, row in zip(names, graph["W"], strict=True)
    }
    x = {i: vector(row) for i, row in zip(names, case["x_tilde"], strict=True)}
    said = x if layers == "one vector" else {i: (x[i], 2 * x[i]) for i in names}
    heard = exchange({i: Mix("state", said[i]) for i in names}, neighborhoods)
    for i, expected in zip(names, case["mixed"], strict=True):
        parts = (heard[i],) if layers == "one vector" else (heard[i][0], heard[i][1] / 2)
        for part in parts:
            close(part, expected)


def test_equation_7_both_x_and_v_are_mixed_and_kept():
    node, case, _ = golden("dpdl", "strict", "vector", "paper")
    mix, talk = played(node, case)
    assert mix.kind == "state"
    assert len(mix.tensors) == 2
    x, v = vector([1.0] * 7), vector([2.0] * 7)
    with pytest.raises(StopIteration):
        talk.send((x, v))
    assert torch.equal(node.state.x, x)
    assert torch.equal(node.state.v, v)
    assert torch.equal(node.parameters, x)


def test_metropolis_weights():
    """w_ij = 1/(1 + max(deg_i, deg_j)), degrees without self, the diagonal takes the rest."""
    case = EQUATIONS["metropolis"]
    edges = {
        str(i): frozenset(str(a + b - i) for a, b in case["edges"] if i in (a, b))
        for i in range(case["n"])
    }
    rows = metropolis(edges)
    for i, expected in enumerate(case["W"]):
        assert [rows[str(i)].get(str(j), 0.0) for j in range(case["n"])] == pytest.approx(
            expected, abs=1e-15
        )


# --- sentences ------------------------------------------------------------------------------------


def test_v_starts_at_zero_and_x_at_the_start():
    node = next(iter(cluster()[0].values()))
    assert torch.equal(node.state.v, torch.zeros(7))
    assert torch.equal(node.state.x, torch.zeros(7))


def test_calibration_is_half_when_orthogonal_or_a_norm_is_zero():
    node, case, _ = golden("dpdl_zero_answer", "strict", "vector", "paper")
    played(node, case)
    assert node.diagnostics()["calibration"]["2"] == 0.5
    assert calibration(cosine(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]))) == 0.5


def test_the_first_term_uses_the_noised_own_gradient_in_both_modes():
    """With α = 0 nothing but the first term is left: the modes agree, and miss the clean
    gradient.
    """
    results = []
    for mode in ("strict", "paper"):
        node, case, _ = golden("dpdl", mode, "vector", "paper")
        node.config = node.config.model_copy(update={"alpha": 0.0})
        results.append(played(node, case)[0].tensors)
    assert torch.equal(results[0][1], results[1][1])
    share = 1 / (sqrt(0.25) * 6)
    expected = (
        share * sum(vectors(case["cross"]).values())
        + 5e-4 * vector(case["x"])
        + 0.9 * vector(case["v"])
    )
    torch.testing.assert_close(results[0][1], expected, rtol=0, atol=1e-12)


def test_a_neighbors_gradient_weighs_the_same_whatever_its_direction():
    """The sigmoid weighs how much of the OWN gradient is added for an edge, not the neighbor's
    gradient.
    """
    node, case, _ = golden("dpdl", "strict", "vector", "paper")
    cross, own = vectors(case["cross"]), vector(case["cross"]["1"])
    for other in (own, -own):
        g = node.aggregate(neighborhood(case), {**cross, "0": other}, own)
        zero = node.aggregate(neighborhood(case), {**cross, "0": torch.zeros_like(own)}, own)
        share = 1.5 * 0.25 * (calibration(cosine(other, own)) - 0.5)
        torch.testing.assert_close(
            g - zero, other / (sqrt(0.25) * 6) + share * own, rtol=0, atol=1e-12
        )


def test_weight_decay_comes_after_the_aggregate_and_before_the_momentum():
    """After the division of `normalized` too, and the gate never sees it."""
    plain, case, _ = golden("dpdl", "strict", "vector", "normalized")
    decayed = golden("dpdl", "strict", "vector", "normalized")[0]
    plain.config = plain.config.model_copy(update={"weight_decay": 0.0})
    difference = played(decayed, case)[0].tensors[1] - played(plain, case)[0].tensors[1]
    torch.testing.assert_close(difference, 5e-4 * vector(case["x"]), rtol=0, atol=1e-15)


def test_the_tentative_model_uses_the_new_momentum_and_the_rounds_step_size():
    for t, eta in ((0, 0.2), (9, 0.2), (10, 0.1), (25, 0.05)):
        nodes, neighborhoods, _ = cluster(n=1, lr=0.2, lr_decay=0.5, decay_every=10)
        node = nodes["n0"]
        node.state = State(x=torch.ones(7), v=torch.ones(7))
        talk = node.round(t, View(neighborhoods["n0"]))
        next(talk)
        x, v = talk.send(Replies()).tensors
        torch.testing.assert_close(x, torch.ones(7) - eta * v, rtol=0, atol=1e-7)


def test_normalized_divides_by_the_sum_over_those_heard():
    """Power: the vector of the missing neighbor's case is missed when w of all four is summed."""
    _, case, _ = golden("dpdl_missing_neighbor", "strict", "vector", "normalized")
    assert scale(neighborhood(case), case["cross"]) == pytest.approx(3 * 2 / 6)
    assert scale(neighborhood(case), case["w"]) == pytest.approx(4 * 2 / 6)


def test_the_effective_step_depends_on_the_topology():
    """Σ_j 1/(N√w_ij) at N = 10: √10 = 3.16 fully connected, 1.47 bipartite, 0.52 ring."""
    names = [f"n{i}" for i in range(10)]
    neighborhoods = {
        "full": make_neighborhoods("full", names),
        "ring": make_neighborhoods("ring", names),
        "bipartite": bipartite(10),
    }
    for kind, expected in (("full", sqrt(10)), ("bipartite", 1.47), ("ring", 0.52)):
        around = neighborhoods[kind]["n0"]
        assert scale(around, around.weight) == pytest.approx(expected, abs=5e-3)


def test_the_model_goes_out_gradients_come_back_and_both_states_are_mixed():
    """Three exchanges and 4·d floats per neighbor: x_i to all; g_{j→i} at MY model; (x̃, ṽ) to
    all.
    """
    nodes, neighborhoods, gates = cluster(n=3)
    asked = {}
    for k, (i, node) in enumerate(nodes.items()):
        node.state = State(x=torch.full((7,), 10.0 * k), v=torch.zeros(7))
        talk = node.round(0, View(neighborhoods[i]))
        verb = next(talk)
        assert (type(verb), verb.kind) == (Ask, "model")
        assert torch.equal(verb.tensors, node.parameters)
        asked[i] = (verb, talk)
    answer = asked["n2"][0].answer("n0", nodes["n0"].parameters)
    assert torch.equal(answer, nodes["n0"].parameters - gates["n2"].c), "n2's data at n0's model"
    assert gates["n2"].served == [(0, "n0")]
    heard = exchange({i: verb for i, (verb, _) in asked.items()}, neighborhoods)
    mix = asked["n0"][1].send(heard["n0"])
    floats = (
        asked["n0"][0].tensors.numel() + answer.numel() + sum(part.numel() for part in mix.tensors)
    )
    assert floats == 4 * 7


@pytest.mark.parametrize(("kind", "degree"), [("full", 4), ("ring", 2)])
def test_an_agent_makes_degree_plus_one_gradients_a_round(kind, degree):
    nodes, neighborhoods, gates = cluster(kind, n=5)
    lockstep.run(nodes, neighborhoods, 3)
    for i, gate in gates.items():
        for t in range(3):
            to = sorted(recipient for when, recipient in gate.served if when == t)
            assert to == sorted(neighborhoods[i].weight)
            assert len(to) == degree + 1 == Dpdl.releases(degree)


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "tensor"}, {"scale": "normalized"}], ids=str
)
def test_a_cluster_finds_the_optimum_of_the_sum_of_its_losses(options):
    """Neighbors' optima are 0, 1, 2, 3: the mean of their losses is least at 1.5."""
    nodes, neighborhoods, _ = cluster(n=4, lr=0.02, weight_decay=0, alpha=0, **options)
    lockstep.run(nodes, neighborhoods, 200)
    for node in nodes.values():
        torch.testing.assert_close(node.parameters, torch.full((7,), 1.5), rtol=0, atol=1e-3)


def test_at_strong_privacy_the_cosine_vanishes_and_the_calibration_fades():
    """‖noise‖ ≈ σC√d/B exceeds the gradient: S ≈ 0, 𝒞 ≈ 0.5; without noise the same gradients
    calibrate.
    """
    d, chance = 20_000, torch.Generator().manual_seed(5)
    signal = torch.randn(d, generator=chance)
    signal /= signal.norm()
    a, b = (signal + 0.1 * torch.randn(d, generator=chance) for _ in range(2))
    assert abs(cosine(a, b)) < 0.03
    assert calibration(cosine(a, b)) == pytest.approx(0.5, abs=0.01)
    assert calibration(cosine(signal, signal)) == pytest.approx(1 / (1 + e))


def test_a_lone_node_is_the_local_optimizer_up_to_its_factor():
    """Σ over N_i = {i}, w = 1, N = 1, S = 1: g̃ = g·(1 + α/(1+e)). Oracle: torch.optim.SGD."""
    node = cluster(n=1, alpha=1.5, beta=0.9, lr=0.01, weight_decay=5e-4)[0]["n0"]
    node.gradients.c = torch.arange(7.0)
    x = torch.nn.Parameter(torch.zeros(7))
    oracle = torch.optim.SGD([x], lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(20):
        oracle.zero_grad()
        (0.5 * (1 + 1.5 / (1 + e)) * (x - node.gradients.c).square().sum()).backward()
        oracle.step()
    lockstep.run({"n0": node}, make_neighborhoods("full", ["n0"]), 20)
    torch.testing.assert_close(node.parameters, x.data, rtol=1e-5, atol=1e-6)


# --- the paper's own calibration of σ -------------------------------------------------------------


def paper_sigma(kind="full", n=10, rate=0.0512, epsilon=1.0, **options):
    receiver = make_neighborhoods(kind, [f"n{i}" for i in range(n)])["n0"]
    config = DpdlConfig(**options)
    return config.paper_sigma(receiver, rate=rate, rounds=1000, epsilon=epsilon, delta=1e-4)


def accounted(sigma):
    """ε of 1000 rounds at the TRUE q of 0.0512, for one answer a round (RDP)."""
    round_ = dp_accounting.PoissonSampledDpEvent(0.0512, dp_accounting.GaussianDpEvent(sigma))
    return RdpAccountant().compose(round_, 1000).get_epsilon(1e-4)


def test_paper_sigma_is_the_formula():
    base = 0.0512 * sqrt(1000 * log(1e4))
    assert paper_sigma() == pytest.approx(base * (sqrt(10) + 10 * 1.5) / 10)
    assert paper_sigma("ring") == pytest.approx(base * (sqrt(3) + 10 * 1.5) / 3)
    assert paper_sigma(epsilon=4.0) == pytest.approx(paper_sigma() / 4)
    assert paper_sigma(alpha=0.0) == pytest.approx(base * sqrt(10) / 10)


@pytest.mark.parametrize(
    ("rate", "link", "colluders"),
    [
        pytest.param(0.0512, 0.61, 2.18, id="true q"),
        pytest.param(0.00512, 13.9, 707, id="the authors' q"),
    ],
)
def test_what_an_accountant_says_of_paper_sigma(rate, link, colluders):
    """Nominal ε = 1 on a full graph of ten: one neighbor, and nine that collude on one shared
    minibatch (σ/√9).
    """
    sigma = paper_sigma(rate=rate)
    assert accounted(sigma) == pytest.approx(link, rel=6e-3)
    assert accounted(sigma / 3) == pytest.approx(colluders, rel=6e-3)
