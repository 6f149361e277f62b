"""Graphs against networkx, W against its definition, and every mistake in a given graph as a
sentence.
"""

import random
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peer import topology
from peer.errors import ConfigurationError
from peer.topology import (
    TOPOLOGIES,
    GraphOptions,
    graph,
    make_neighborhoods,
    metropolis,
    refuse,
    unreachable,
)

PLAIN = sorted(TOPOLOGIES.keys() - {"edges", "erdos-renyi"})
REGULAR = ("ring", "full", "torus", "hypercube", "exponential")
sizes = st.integers(1, 40)


def names(n):
    return [f"n{i:02}" for i in range(n)]


def as_nx(edges):
    found = nx.Graph()
    found.add_nodes_from(edges)
    found.add_edges_from((i, j) for i, around in edges.items() for j in around)
    return found


def built(kind, n, **wiring):
    """The graph, or None where so many nodes can't have it."""
    try:
        return graph(kind, names(n), GraphOptions(**wiring))
    except ConfigurationError:
        return None


def numbered(oracle, n):
    """networkx' graph with our names, in the order of its own."""
    return nx.relabel_nodes(oracle, dict(zip(sorted(oracle), names(n), strict=True)))


def rectangle(n):
    rows = max(r for r in range(1, n + 1) if n % r == 0 and r * r <= n)
    return rows, n // rows


ORACLES = {
    "ring": lambda n: nx.cycle_graph(n),
    "full": lambda n: nx.complete_graph(n),
    "star": lambda n: nx.star_graph(n - 1),
    "bipartite": lambda n: nx.Graph((i, j) for i in range(n) for j in range(n) if i % 2 < j % 2),
    "grid": lambda n: nx.grid_2d_graph(*rectangle(n)),
    "torus": lambda n: nx.grid_2d_graph(*rectangle(n), periodic=True),
    "hypercube": lambda n: nx.hypercube_graph(n.bit_length() - 1),
    "exponential": lambda n: nx.circulant_graph(n, [1 << k for k in range(n) if 1 << k < n]),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("n", range(2, 34))
def test_every_graph_is_networkx(kind, n):
    found = built(kind, n)
    if found is None:
        assert (kind == "hypercube" and n & (n - 1)) or (
            kind in ("grid", "torus") and rectangle(n)[0] == 1
        )
        return
    oracle = numbered(ORACLES[kind](n), n)
    oracle.remove_edges_from(nx.selfloop_edges(oracle))
    assert nx.utils.graphs_equal(as_nx(found), oracle)


@given(st.sampled_from(sorted(ORACLES)), sizes)
def test_facts(kind, n):
    found = built(kind, n)
    assume(found is not None)
    oracle = as_nx(found)
    assert nx.is_connected(oracle)
    assert nx.number_of_selfloops(oracle) == 0
    if kind in REGULAR:
        assert nx.is_regular(oracle)
    if kind in ("bipartite", "star", "grid", "hypercube") or (kind == "ring" and n % 2 == 0):
        assert nx.is_bipartite(oracle)
    most = {
        "ring": 2,
        "grid": 4,
        "torus": 4,
        "hypercube": n.bit_length() - 1,
        "exponential": 2 * n.bit_length(),
    }
    assert max(map(len, found.values())) <= most.get(kind, n - 1)


@pytest.mark.parametrize(
    ("kind", "n", "part"),
    [
        ("hypercube", 6, "take 4 or 8"),
        ("grid", 7, "take 6 or 8"),
        ("torus", 13, "take 12 or 14"),
        (
            "moon",
            4,
            "choose one of bipartite, edges, erdos-renyi, exponential, full, grid, hypercube, "
            "ring, star, torus",
        ),
        ("ring", 0, "at least one node"),
        ("edges", 3, "needs edges"),
    ],
)
def test_what_can_not_be_had_is_a_sentence(kind, n, part):
    with pytest.raises(ConfigurationError, match=part) as error:
        graph(kind, names(n))
    assert error.value.exit_code == 78


@pytest.mark.parametrize("kind", PLAIN)
def test_a_name_given_twice_is_a_sentence(kind):
    with pytest.raises(ConfigurationError, match="a name of its own"):
        graph(kind, ["a", "b", "a", "c"])


# --- Erdős–Rényi ----------------------------------------------------------------------------------


@given(st.integers(1, 25), st.integers(0, 2**40), st.floats(0.15, 1.0))
def test_erdos_renyi_is_connected_and_a_function_of_the_seed(n, seed, p):
    found = built("erdos-renyi", n, seed=seed, p=p)
    assume(found is not None)
    assert nx.is_connected(as_nx(found))
    assert graph("erdos-renyi", names(n)[::-1], GraphOptions(seed=seed, p=p)) == found
    assert len(found) == n


def test_erdos_renyi_has_about_p_of_the_edges_and_another_seed_gives_another_graph():
    drawn = [as_nx(built("erdos-renyi", 40, seed=seed, p=0.3)) for seed in range(20)]
    share = sum(g.number_of_edges() for g in drawn) / (20 * 40 * 39 / 2)
    assert share == pytest.approx(0.3, abs=0.02)
    assert len({frozenset(g.edges) for g in drawn}) == 20


def test_erdos_renyi_is_drawn_again_until_it_is_connected(monkeypatch):
    """Power: with one attempt half of these are refused."""
    assert all(built("erdos-renyi", 10, seed=seed, p=0.2) for seed in range(30))
    monkeypatch.setattr(topology, "ATTEMPTS", 1)
    assert 5 < sum(built("erdos-renyi", 10, seed=seed, p=0.2) is None for seed in range(30)) < 30


def test_an_erdos_renyi_graph_that_never_comes_is_a_sentence():
    with pytest.raises(
        ConfigurationError,
        match=r"p = 0\.01 is connected; raise it \(to ln\(N\)/N = 0\.092 or more",
    ):
        graph("erdos-renyi", names(40), GraphOptions(p=0.01))


def test_erdos_renyi_is_the_same_on_every_machine():
    """Nodes compute it each for themselves."""
    found = graph("erdos-renyi", names(6), GraphOptions(p=0.4, seed=7))
    pinned = {
        "n00": "124",
        "n01": "025",
        "n02": "01345",
        "n03": "245",
        "n04": "0235",
        "n05": "1234",
    }
    assert {i: "".join(sorted(j[-1] for j in around)) for i, around in found.items()} == pinned


# --- a given graph --------------------------------------------------------------------------------

connected = st.builds(
    lambda n, p, seed: nx.compose(nx.path_graph(n), nx.gnp_random_graph(n, p, seed=seed)),
    st.integers(2, 15),
    st.floats(0, 1),
    st.integers(0, 1000),
)


@given(connected, st.randoms(use_true_random=False))
def test_given_edges_are_the_graph_in_whatever_order_and_direction(oracle, chance):
    oracle = numbered(oracle, len(oracle))
    edges = [pair if chance.random() < 0.5 else pair[::-1] for pair in oracle.edges]
    edges += chance.sample(edges, len(edges) // 3)
    chance.shuffle(edges)
    assert nx.utils.graphs_equal(
        as_nx(graph("edges", list(oracle), GraphOptions(edges=edges))), oracle
    )


@given(connected)
def test_a_given_w_is_kept(oracle):
    """Metropolis weights written with eight decimals and read back: the same within that, and again
    rows of sum 1.
    """
    rows = metropolis(
        {i: frozenset(around) for i, around in numbered(oracle, len(oracle)).adjacency()}
    )
    edges = [(i, j, round(w, 8)) for i, row in rows.items() for j, w in row.items()]
    found = make_neighborhoods("edges", list(rows), GraphOptions(edges=edges))
    assert {i: neighborhood.weight for i, neighborhood in found.items()} == {
        i: pytest.approx(row, abs=1e-6) for i, row in rows.items()
    }
    for i, neighborhood in found.items():
        assert sum(neighborhood.weight.values()) == pytest.approx(1, abs=1e-15)
        assert all(found[j].weight[i] == w for j, w in neighborhood.weight.items())
        assert list(neighborhood.weight) == sorted(neighborhood.weight)


def test_the_diagonal_may_be_left_out():
    neighborhoods = make_neighborhoods(
        "edges", ["a", "b", "c"], GraphOptions(edges=[("b", "a", 0.2), ("b", "c", 0.5)])
    )
    assert neighborhoods["b"].weight == pytest.approx({"a": 0.2, "b": 0.3, "c": 0.5})
    assert neighborhoods["a"].weight == pytest.approx({"a": 0.8, "b": 0.2})


@pytest.mark.parametrize(
    ("edges", "part"),
    [
        ([("a", "b")], "not connected: no way leads from a to c"),
        ([("a", "b"), ("c", "c")], "no way leads from a to c"),
        ([("a", "b"), ("b", "z")], "names z, which is not a node; there are a, b, c"),
        ([("a", "b", 0.3), ("b", "c")], "gives b–c no weight"),
        ([("a", "b", 0.3), ("b", "c", 0.3), ("b", "a", 0.2)], "a–b two weights|b–a two weights"),
        ([("a", "b", 0.3), ("b", "c", 0.0)], "has 0 for b–c"),
        ([("a", "b", 0.3), ("b", "c", -0.2)], "has -0.2 for b–c"),
        ([("a", "b", 0.3), ("b", "c", float("nan"))], "has nan for"),
        ([("a", "b", 0.3), ("b", "c", 1.5)], "has 1.5 for b–c"),
        ([("a", "b", 0.5), ("b", "c", 0.5)], "has 0 for b–b"),
        ([("a", "b", 0.7), ("b", "c", 0.7)], "has -0.4 for b–b"),
        ([("a", "b", 0.3), ("b", "c", 0.3), ("b", "b", 0.5)], r"weights of b in W add up to 1\.1"),
    ],
)
def test_a_bad_graph_or_w_is_a_sentence(edges, part):
    with pytest.raises(ConfigurationError, match=part) as error:
        make_neighborhoods("edges", ["a", "b", "c"], GraphOptions(edges=edges))
    assert error.value.exit_code == 78
    assert str(error.value).count("\n") == 0


def test_edges_belong_to_the_graph_of_edges_alone():
    """`plan` asks for every graph of the table with the wiring of one run."""
    wiring = GraphOptions(edges=[("a", "b", 0.1), ("b", "c", 0.1)])
    assert make_neighborhoods("full", ["a", "b", "c"], wiring) == make_neighborhoods(
        "full", ["a", "b", "c"]
    )


# --- W --------------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(TOPOLOGIES.keys() - {"edges"})), sizes, st.randoms(use_true_random=False)
)
def test_w_is_symmetric_doubly_stochastic_and_as_sparse_as_the_graph(kind, n, chance):
    """And the same for everybody, in whatever order the names come."""
    edges = built(kind, n)
    assume(edges is not None)
    neighborhoods = make_neighborhoods(kind, chance.sample(names(n), n))
    assert list(neighborhoods) == names(n)
    for i, neighborhood in neighborhoods.items():
        assert neighborhood.weight.keys() == edges[i] | {i}
        assert list(neighborhood.weight) == sorted(neighborhood.weight)
        assert all(neighborhoods[j].weight[i] == w > 0 for j, w in neighborhood.weight.items())
        assert sum(neighborhood.weight.values()) == pytest.approx(1, abs=1e-15)
        assert neighborhood.nodes == n
    refuse({i: neighborhood.weight for i, neighborhood in neighborhoods.items()})


def test_what_is_no_w_is_refused():
    """Power of the line above: each fact is looked at."""
    good = {
        i: dict(neighborhood.weight)
        for i, neighborhood in make_neighborhoods("ring", names(5)).items()
    }
    for i, j, w in (
        ("n00", "n01", 0.3),
        ("n00", "n00", 0.3),
        ("n00", "n01", 0.0),
        ("n00", "n02", 0.1),
    ):
        with pytest.raises(ConfigurationError, match="W"):
            refuse({**good, i: {**good[i], j: w}})
    refuse(good)


@given(st.integers(1, 30), st.floats(0, 0.3), st.integers(0, 1000))
def test_who_is_unreachable(n, p, seed):
    oracle = nx.gnp_random_graph(n, p, seed=seed)
    found = unreachable({i: frozenset(around) for i, around in oracle.adjacency()})
    assert found == set(oracle) - nx.node_connected_component(oracle, 0)


def test_a_ring_in_another_order_of_names_is_another_ring():
    """The names decide who is whose neighbor; so they are sorted first, everywhere."""
    shuffled = random.Random(1).sample(names(8), 8)
    assert graph("ring", shuffled) == graph("ring", names(8))
    assert all(b in graph("ring", shuffled)[a] for a, b in pairwise(names(8)))
