"""Who can tell whether a record is another node's: likelihood ratios, what they are worth, and that no
run in mode strict gives more away than its accountant says.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from kit import LONG, ROOT
from node.audit.inversion import invert
from node.audit.lira import rate_at, scores
from node.audit.membership import Membership, _coins, infer
from node.audit.modes import examples_of, in_mode
from node.config import ExperimentConfig, load
from node.experiments.resolve import ResolvedRun, resolve
from node.privacy.accountant import Mode
from peer.errors import ConfigurationError

EXAMPLE = ROOT / "deploy" / "examples" / "quickstart.toml"
RUNS = 24 if LONG else 4
RECORDS = 100
DEVIATION = (1 / (3 * RUNS * RECORDS)) ** 0.5
"""Of the AUC of mere chance, if records were independent."""


def test_the_score_is_the_ratio_of_two_normal_likelihoods() -> None:
    draw = np.random.default_rng(0)
    runs, records, shift = 400, 5, 1.5
    present = draw.random((runs, records)) < 0.5
    center = np.arange(records) * 10.0
    seen = center + draw.normal(size=(runs, records)) + shift * present
    expected = shift * (seen - center) - shift**2 / 2
    assert np.abs(scores(seen[..., None], present) - expected).max() < 1.0
    both = scores(np.stack([seen, seen], -1), present)
    np.testing.assert_allclose(both, 2 * scores(seen[..., None], present))


def auc_of_noise(present: NDArray[np.bool_]) -> float:
    figures = np.random.default_rng(1).normal(size=(*present.shape, 2))
    seen = scores(figures, present)
    others = np.sort(seen[~present])
    return float(np.searchsorted(others, seen[present]).mean() / len(others))


def test_chance_is_chance_however_few_runs_there_are() -> None:
    """But not if each record is in half of the runs: then the others tell whether it is in this
    one.
    """
    present = np.random.default_rng(0).random((6, 4000)) < 0.5
    deviation = (1 / (3 * present.size)) ** 0.5
    assert abs(auc_of_noise(present) - 0.5) < 4 * deviation
    present[1::2] = ~present[::2]
    assert abs(auc_of_noise(present) - 0.5) > 8 * deviation


def test_a_run_is_no_shadow_of_its_own() -> None:
    """Else whoever has few runs finds in each what it put there."""
    draw = np.random.default_rng(0)
    present = np.array([[True], [False]] * 3)
    seen = draw.normal(size=(6, 1, 1))
    before = scores(seen, present)[0]
    changed = present.copy()
    changed[0] = False
    assert scores(seen, changed)[0] == before


def test_the_rate_at_a_false_positive_rate_and_its_interval() -> None:
    others, members = np.arange(1000.0), np.array([999.5, 995.0, 989.5, 0.0])
    rate = rate_at(members, others, 0.01, bound=0.9)
    assert (rate.true_positives, rate.bound) == (0.75 - 0.0, 0.9)
    assert rate_at(members, others, 0.001, bound=0.9).true_positives == 0.5 - 0.25
    assert rate.low < rate.true_positives < rate.high


@lru_cache
def attacked(mode: Mode, sigma: float = 1.5) -> tuple[Membership, ...]:
    settings = ["train.rounds=8"]
    config = load(ExperimentConfig, [EXAMPLE], settings, environ={})
    privacy = config.privacy.model_copy(update={"epsilon": None, "sigma": sigma})
    config = in_mode(config.model_copy(update={"privacy": privacy}), mode)
    return infer(resolve(config), runs=RUNS, records=RECORDS, seed=1)


def test_each_record_is_there_by_a_coin_of_its_own() -> None:
    """Halves of a fixed size would all be of one size: then one record more is another one less,
    which is not what ε speaks of.
    """
    present = _coins(np.random.default_rng(0), 400, 100)
    sizes = present.sum(1)
    assert abs(sizes.mean() - 50) < 4 * 5 / 20
    assert abs(sizes.std() - 5) < 4 * 5 / 800**0.5
    with pytest.raises(ConfigurationError, match="32 records of a node at least"):
        _coins(np.random.default_rng(0), 4, 31)


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> ResolvedRun:
    """Two nodes without noise, and a table of eighty persons with three rows each."""
    draw = np.random.default_rng(0)
    table = tmp_path_factory.mktemp("persons") / "table.csv"
    names = [f"x{k}" for k in range(60)]
    lines = [",".join(["who", "label", *names])]
    for k, row in enumerate(draw.normal(size=(240, len(names)))):
        lines.append(",".join([f"p{k // 3}", str(k % 2), *(f"{value:.3f}" for value in row)]))
    table.write_text("\n".join(lines))
    features = dict.fromkeys(names, (0.0, 1.0))
    task = {"data": "file", "path": table, "unit": "who", "classes": 2, "features": features}
    config = ExperimentConfig.model_validate(
        {
            "algorithm": {"name": "d-psgd", "lr": 0.3},
            "task": task,
            "train": {"rounds": 6},
            "privacy": {"mode": "none", "batch": 40},
            "experiment": {"nodes": 2, "partition": "iid"},
        }
    )
    return resolve(config)


def test_with_a_unit_persons_are_there_or_not(persons: ResolvedRun) -> None:
    """All rows of one, or none."""
    examples = examples_of(persons, "n0")
    assert max(len(rows) for rows in examples) == 3
    assert persons.train is not None
    assert persons.train.units is not None
    whose = [set(persons.train.units[rows].tolist()) for rows in examples]
    assert {len(each) for each in whose} == {1}
    assert len(set.union(*whose)) == len(examples)
    [result] = infer(persons, runs=4, seed=1)
    assert result.records == len(examples)
    assert result.auc > 0.8


def test_with_a_unit_persons_of_one_record_are_inverted(persons: ResolvedRun) -> None:
    result = invert(persons, "trap", records=8, seed=1)
    assert (result.records, result.recovered) == (8, 8)


def test_without_noise_a_neighbor_knows_who_is_there() -> None:
    near, far = attacked("none")
    assert (near.watcher, far.watcher) == ("neighbor", "two hops")
    for result in (near, far):
        assert result.runs == RUNS
        assert {rate.bound for rate in result.rates} == {1.0}
    assert near.auc > 0.9
    assert near.rates[0].low > 5 * near.rates[0].false_positives
    assert far.auc > 0.5 + 5 * DEVIATION


def test_in_mode_strict_nobody_knows_more_than_the_accountant_says() -> None:
    for result in attacked("strict"):
        assert all(rate.low <= rate.bound < 1 for rate in result.rates)


def test_power_with_less_noise_a_neighbor_exceeds_that_bound() -> None:
    bound = attacked("strict")[0].rates[0].bound
    near, _ = attacked("strict", sigma=0.001)
    assert near.rates[0].low > bound
    assert near.rates[0].bound == 1.0


@pytest.mark.parametrize(
    ("settings", "runs", "words"),
    [
        ((), 3, "4 runs at least"),
        (("task.data=own",), 4, "stay with their hosts"),
        (("algorithm={name='local', lr=1}",), 4, "sends nothing"),
        (("algorithm={name='local', lr=1}", "experiment.nodes=1"), 4, "no neighbors"),
    ],
)
def test_what_can_t_be_inferred_is_a_sentence(
    settings: tuple[str, ...], runs: int, words: str
) -> None:
    config = load(ExperimentConfig, [EXAMPLE], list(settings), environ={})
    with pytest.raises(ConfigurationError, match=words):
        infer(resolve(in_mode(config, "none")), runs=runs)
