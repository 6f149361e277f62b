"""Partitions: disjoint, equal, covering, deterministic, and as unequal in classes as Dirichlet says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import partition
from node.config import ExperimentSection
from peer.errors import ConfigurationError

LABELS = np.random.default_rng(3).integers(0, 10, 1438)


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
    for parts in (partition.dirichlet(labels, nodes, alpha, seed), partition.iid(len(labels), nodes, seed)):
        assert [len(rows) for rows in parts] == [len(labels) // nodes] * nodes
        everything = partition.union(parts)
        assert len(np.unique(everything)) == len(everything) == len(labels) // nodes * nodes
        assert all((np.diff(rows) > 0).all() and rows.dtype == np.int64 for rows in parts)


def test_same_seed_same_parts_other_seed_other_parts():
    def divided(seed: int, kind: str) -> list[list[int]]:
        section = ExperimentSection(nodes=4, partition=kind, seed=seed)
        return [rows.tolist() for rows in partition.divide(section, LABELS)]

    for kind in ("iid", "dirichlet"):
        assert divided(1, kind) == divided(1, kind)
        assert divided(1, kind) != divided(2, kind)


def test_global_seeds_do_not_matter():
    np.random.seed(1)
    first = partition.dirichlet(LABELS, 4, 0.25, 0)
    np.random.seed(2)
    assert all((a == b).all() for a, b in zip(first, partition.dirichlet(LABELS, 4, 0.25, 0), strict=True))


def test_small_alpha_is_non_iid_and_large_alpha_is_not():
    def unevenness(parts: list[np.ndarray]) -> float:
        """Mean total variation between a node's labels and everybody's."""
        counts = partition.histogram(LABELS, parts, 10)
        everybody = counts.sum(0) / counts.sum()
        return float(np.abs(counts / counts.sum(1, keepdims=True) - everybody).sum(1).mean() / 2)

    of = {alpha: unevenness(partition.dirichlet(LABELS, 4, alpha, 0)) for alpha in (0.05, 0.25, 1.0, 1000.0)}
    assert of[0.05] > of[0.25] > of[1.0] > of[1000.0]
    assert of[0.25] > 0.35
    assert of[1000.0] < 0.1
    assert unevenness(partition.iid(len(LABELS), 4, 0)) < 0.1


def test_histogram_counts_examples_per_node_and_class():
    assert partition.histogram(np.array([0, 1, 1, 2]), [np.array([0, 1]), np.array([2])], 4).tolist() == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
    ]
