"""Partitions: disjoint, equal, covering, deterministic, and as unequal in classes as Dirichlet
says.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.config import ExperimentSection
from node.data import Examples, partition
from peer.errors import ConfigurationError

LABELS = np.random.default_rng(3).integers(0, 10, 1438)
WRITER = np.random.default_rng(4).integers(0, 30, 1438)
EXAMPLES = Examples(torch.zeros(1438, 1, 1, 1), torch.from_numpy(LABELS), {"writer": WRITER})


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array),
    st.integers(1, 8),
    st.sampled_from([1e-6, 0.05, 0.25, 1.0, 100.0]),
    st.integers(0, 2**32),
)
def test_parts_are_disjoint_equal_and_cover_what_equal_sizes_allow(labels, nodes, alpha, seed):
    if nodes > len(labels):
        with pytest.raises(ConfigurationError, match="more than"):
            partition.dirichlet(labels, nodes, alpha, seed)
        return
    for parts in (
        partition.dirichlet(labels, nodes, alpha, seed),
        partition.iid(len(labels), nodes, seed),
    ):
        assert [len(rows) for rows in parts] == [len(labels) // nodes] * nodes
        everything = partition.union(parts)
        assert len(np.unique(everything)) == len(everything) == len(labels) // nodes * nodes
        assert all((np.diff(rows) > 0).all() and rows.dtype == np.int64 for rows in parts)


def test_same_seed_same_parts_other_seed_other_parts():
    def divided(seed: int, kind: str) -> list[list[int]]:
        values = {"nodes": 4, "partition": kind, "seed": seed, "column": "writer"}
        section = ExperimentSection.model_validate(values)
        return [rows.tolist() for rows in partition.divide(section, EXAMPLES)]

    for kind in ("iid", "dirichlet", "dirichlet-unequal", "shards", "column"):
        assert divided(1, kind) == divided(1, kind)
        assert divided(1, kind) != divided(2, kind)


def test_global_seeds_do_not_matter():
    np.random.seed(1)
    first = partition.dirichlet(LABELS, 4, 0.25, 0)
    np.random.seed(2)
    assert all(
        (a == b).all() for a, b in zip(first, partition.dirichlet(LABELS, 4, 0.25, 0), strict=True)
    )


def test_small_alpha_is_non_iid_and_large_alpha_is_not():
    def unevenness(parts: list[np.ndarray]) -> float:
        """Mean total variation between a node's labels and everybody's."""
        counts = partition.histogram(LABELS, parts, 10)
        everybody = counts.sum(0) / counts.sum()
        return float(np.abs(counts / counts.sum(1, keepdims=True) - everybody).sum(1).mean() / 2)

    of = {
        alpha: unevenness(partition.dirichlet(LABELS, 4, alpha, 0))
        for alpha in (0.05, 0.25, 1.0, 1000.0)
    }
    assert of[0.05] > of[0.25] > of[1.0] > of[1000.0]
    assert of[0.25] > 0.35
    assert of[1000.0] < 0.1
    assert unevenness(partition.iid(len(LABELS), 4, 0)) < 0.1


def test_histogram_counts_examples_per_node_and_class():
    assert partition.histogram(
        np.array([0, 1, 1, 2]), [np.array([0, 1]), np.array([2])], 4
    ).tolist() == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
    ]


LABELED = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def disjoint(parts: list[np.ndarray]) -> bool:
    everything = partition.union(parts)
    return len(np.unique(everything)) == len(everything) and all(
        len(rows) and (np.diff(rows) > 0).all() for rows in parts
    )


@given(LABELED, st.integers(1, 8), st.sampled_from([1e-3, 0.25, 100.0]), st.integers(0, 2**32))
def test_unequal_parts_hold_every_row_and_none_is_empty(labels, nodes, alpha, seed):
    if nodes > len(labels):
        with pytest.raises(ConfigurationError, match="more than"):
            partition.dirichlet_unequal(labels, nodes, alpha, seed)
        return
    parts = partition.dirichlet_unequal(labels, nodes, alpha, seed)
    assert disjoint(parts)
    assert sum(map(len, parts)) == len(labels)


def test_unequal_parts_are_unequal():
    sizes = [len(rows) for rows in partition.dirichlet_unequal(LABELS, 8, 0.25, 0)]
    assert max(sizes) > 3 * min(sizes)


@given(LABELED, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_every_node_has_so_many_shards_of_one_size(labels, nodes, each, seed):
    if nodes * each > len(labels):
        with pytest.raises(ConfigurationError, match="more than"):
            partition.shards(labels, nodes, each, seed)
        return
    parts = partition.shards(labels, nodes, each, seed)
    assert disjoint(parts)
    assert [len(rows) for rows in parts] == [len(labels) // (nodes * each) * each] * nodes


def test_two_shards_hold_few_classes():
    parts = partition.shards(LABELS, 10, 2, 0)
    assert max((counts > 0).sum() for counts in partition.histogram(LABELS, parts, 10)) <= 4


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_a_value_of_the_column_is_with_one_node_only(column, nodes, seed):
    if nodes > len(np.unique(column)):
        with pytest.raises(ConfigurationError, match="values of the column"):
            partition.by_column(column, nodes, seed)
        return
    parts = partition.by_column(column, nodes, seed)
    assert disjoint(parts)
    assert sum(map(len, parts)) == len(column)
    holders = [
        {k for k, rows in enumerate(parts) if value in column[rows]} for value in np.unique(column)
    ]
    assert all(len(holder) == 1 for holder in holders)


def test_a_column_that_is_not_there_is_one_sentence():
    with pytest.raises(
        ConfigurationError, match="'author' is no column of the data; it has writer"
    ):
        partition.divide(ExperimentSection(partition="column", column="author"), EXAMPLES)
