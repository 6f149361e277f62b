"""The names with dp-: the algorithm's own bits in mode strict, and no run in any other mode."""

import pytest
from pydantic import ValidationError

from node.algorithms import ALGORITHMS, NOISED, find
from node.config import ExperimentConfig
from node.experiments.in_process import simulate
from node.experiments.local_cluster import _baseline
from node.learning.plan import Plan
from peer.errors import ConfigurationError

names = pytest.mark.parametrize("name", sorted(NOISED))


def experiment(name, **privacy):
    return ExperimentConfig.model_validate(
        {
            "algorithm": {"name": name},
            "train": {"rounds": 2, "evaluate_every": 0},
            "privacy": {"sigma": 2.0, "rate": 0.1, "batch": 30, "insecure_seed": 1, **privacy},
            "experiment": {"nodes": 3},
        }
    )


def test_every_name_is_the_algorithms_name_with_dp():
    assert {name: f"dp-{own}" for name, own in NOISED.items()} == {name: name for name in NOISED}
    assert not NOISED.keys() & ALGORITHMS.keys()
    assert set(NOISED.values()) <= ALGORITHMS.keys()


@names
@pytest.mark.parametrize("mode", ["none", "paper"])
def test_it_never_runs_without_noise(name, mode):
    with pytest.raises(
        ConfigurationError, match=rf'^{name} is {name[3:]} with noise: set privacy.mode = "strict"'
    ):
        Plan.of(experiment(name, mode=mode).run_config, {})
    with pytest.raises(ValidationError, match="sigma"):
        experiment(name, sigma=0.0)


@names
def test_in_mode_strict_it_has_the_bits_of_the_algorithm_and_its_own_name(name, tmp_path):
    assert find(name) is find(NOISED[name])
    noised, plain = (simulate(experiment(each), tmp_path / each) for each in (name, NOISED[name]))
    assert noised.params_digest == plain.params_digest
    assert noised.algorithm == name


def test_beside_it_stands_the_algorithm_without_noise(tmp_path):
    """`up --baseline`."""
    summary = _baseline(experiment("dp-dmsgd"), tmp_path / "baseline", {})
    assert (summary.algorithm, summary.privacy.mode) == ("dmsgd", "none")
