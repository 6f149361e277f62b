"""The knowledge matrix against a naive count with fractions: D-PSGD unrolled by hand, and exact
elimination.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest
import torch

from node.audit import Unfit
from node.audit.knowledge import Release, hops, knowledge, reconstructions
from node.config import ExperimentConfig
from node.learning.plan import Plan
from peer.neighborhood import Neighborhood

Row = list[Fraction]


def plan(kind: str, nodes: int, algorithm: str = "d-psgd", **options: object) -> Plan:
    config = ExperimentConfig.model_validate(
        {
            "algorithm": {"name": algorithm, **options},
            "topology": {"kind": kind},
            "privacy": {"mode": "none"},
            "experiment": {"nodes": nodes},
        }
    )
    return Plan.of(config.run_config, config.neighborhoods(config.experiment.names))


def heard_by_hand(made: Plan, curious: Iterable[str], rounds: int) -> tuple[list[Row], list[str]]:
    """x ← W x − g from zero, as rows over (node, round); what the curious hear, and the columns."""
    around, names = made.neighborhoods, sorted(made.neighborhoods)
    columns = [f"{name} {t}" for name in names for t in range(rounds)]
    x = {name: [Fraction(0)] * len(columns) for name in names}
    heard: list[Row] = []
    for t in range(rounds):
        heard += [x[j] for i in curious for j in sorted(around[i].neighbors)]
        x = {i: mixed(around[i], x) for i in names}
        for i in names:
            x[i][columns.index(f"{i} {t}")] -= 1
    own = [
        [Fraction(c.split()[0] == i and c == d) for c in columns] for i in curious for d in columns
    ]
    return heard + [row for row in own if any(row)], columns


def mixed(around: Neighborhood, x: dict[str, Row]) -> Row:
    weights = {j: Fraction(weight).limit_denominator(1000) for j, weight in around.weight.items()}
    return [
        sum((w * x[j][k] for j, w in weights.items()), Fraction(0))
        for k in range(len(x[around.me]))
    ]


def reduced(rows: list[Row]) -> list[Row]:
    """Reduced row echelon form, exactly."""
    rows, done = [row[:] for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((k for k in range(done, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        rows[done] = [value / rows[done][column] for value in rows[done]]
        for k, row in enumerate(rows):
            if k != done and row[column]:
                rows[k] = [a - row[column] * b for a, b in zip(row, rows[done], strict=True)]
        done += 1
    return rows[:done]


def naive(made: Plan, curious: Iterable[str], rounds: int) -> set[str]:
    """A unit vector is in the row space if and only if it is a row of the reduced form."""
    rows, columns = heard_by_hand(made, curious, rounds)
    units = [row for row in reduced(rows) if sum(map(bool, row)) == 1]
    known = {columns[next(k for k, value in enumerate(row) if value)] for row in units}
    return {each for each in known if each.split()[0] not in curious}


def names(known: Iterable[Release]) -> set[str]:
    return {f"{node} {t}" for node, t, _ in known}


@pytest.mark.parametrize(
    ("kind", "nodes", "curious"),
    [
        ("ring", 5, ("n0",)),
        ("ring", 5, ("n0", "n2")),
        ("star", 5, ("n0",)),
        ("star", 5, ("n3",)),
        ("full", 4, ("n1",)),
        ("grid", 6, ("n0", "n5")),
        ("ring", 4, ("n1", "n3")),
    ],
)
@pytest.mark.parametrize("rounds", [2, 5])
def test_what_is_known_is_what_exact_elimination_finds(
    kind: str, nodes: int, curious: tuple[str, ...], rounds: int
) -> None:
    made = plan(kind, nodes)
    assert names(knowledge(made, curious, rounds).known()) == naive(made, curious, rounds)


def test_by_hand() -> None:
    """Whoever hears all others knows what they did, but for the last round; a leaf of a star knows
    the hub's first step alone.
    """
    everything = reconstructions(plan("full", 4), ["n0"], 5)
    assert [(it.known, it.of, it.last) for it in everything] == [(4, 5, 3)] * 3
    leaf = reconstructions(plan("star", 4), ["n1"], 5)
    assert [(it.node, it.hops) for it in leaf] == [("n0", 1), ("n2", 2), ("n3", 2)]
    assert [(it.known, it.last) for it in leaf] == [(1, 0), (0, None), (0, None)]


def test_gossip_gives_away_what_a_single_exchange_hides() -> None:
    """On the same ring, one neighbor: K exchanges of one release each are K equations."""
    once, often = (
        reconstructions(plan("ring", 6, "muffliato", gossip=k, spectral_gap=0.5), ["n0"], 4)
        for k in (1, 6)
    )
    assert sum(it.known for it in once) < 5
    assert [it.known for it in often] == [it.of for it in often]


def test_answers_are_known_to_those_who_asked() -> None:
    made = plan("ring", 5, "dpdl")
    known = knowledge(made, ["n0"], 3).known()
    assert {(node, t) for node, t, to in known if to == "n0"} == {
        (node, t) for node in ("n1", "n4") for t in range(3)
    }
    assert [it for it in known if it[0] in ("n2", "n3")] == []


def test_what_it_is_not_worked_out_for() -> None:
    with pytest.raises(Unfit, match="All nodes are curious"):
        reconstructions(plan("full", 2), ["n0", "n1"], 3)
    for name in ("dsgd-adam", "deca"):  # a step of Adam is no weighted sum
        with pytest.raises(Unfit, match=r"algorithm\.name=d-psgd"):
            knowledge(plan("full", 3, name), ["n0"], 2)
    with pytest.raises(Unfit, match=r"algorithm\.mix_by=w"):
        knowledge(plan("full", 3, "ross", mix_by="trimmed_mean"), ["n0"], 2)


@pytest.mark.parametrize("normalization", ["relu", "softmax"])
def test_shapley_values_of_neighbors_that_are_worth_the_same_are_w(normalization: str) -> None:
    """Then ROSS is plain cross-averaging, message by message."""
    step = {"beta": 0.5, "weight_decay": 0.0}
    made = knowledge(plan("ring", 5, "ross", normalization=normalization, **step), ["n0"], 3)
    plain = knowledge(plan("ring", 5, "xavg", **step), ["n0"], 3)
    assert made.places == plain.places
    torch.testing.assert_close(made.matrix, plain.matrix)


def test_hops() -> None:
    around = plan("ring", 6).neighborhoods
    assert hops(around, ["n0", "n1"]) == {"n0": 0, "n1": 0, "n2": 1, "n5": 1, "n3": 2, "n4": 2}
