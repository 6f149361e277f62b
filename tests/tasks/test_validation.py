"""The validation set: held out of public data before they are divided, a file for own data, the
same for all; and the utility made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from node import data
from node.algorithms import find
from node.config import DataSection, ExperimentConfig, RunConfig
from node.data import Examples, partition
from node.experiments.in_process import simulate
from node.learning.resources import check_compatible
from node.records import journal
from node.task import views
from node.tasks import make
from node.tasks.classification import Classification
from node.tasks.validation import BATCH, ValidationScorer, held_out, load, sealed
from peer.errors import ConfigurationError, DataError

NONE = {"mode": "none", "batch": 8}


def run(name="ross", **sections) -> RunConfig:
    return RunConfig(**{"algorithm": {"name": name}, "privacy": NONE, **sections})


def labels():
    return data.public_sets(run().task)[0].y.numpy()


def test_it_is_class_balanced_the_same_everywhere_and_as_large_as_asked():
    rows = held_out(run(validation={"size": 105}), labels())
    assert sorted(np.bincount(labels()[rows])) == [10] * 5 + [11] * 5
    assert np.array_equal(
        rows, held_out(run(validation={"size": 105}, train={"seed": 9}), labels())
    )


def test_where_the_algorithm_needs_one_there_are_500_or_a_tenth():
    n = len(labels())
    assert sealed(run()).validation.size == n // 10 < 500
    assert sealed(run("dpdl")).validation.size is None
    assert sealed(run("dpdl", validation={"size": 50})).validation.size == 50, (
        "asked for, so held out for all"
    )
    assert (
        sealed(run()).validation.digest
        != sealed(run(validation={"size": 50})).validation.digest
        != ""
    )


@pytest.mark.parametrize("how", ["iid", "dirichlet", "dirichlet-unequal", "shards"])
def test_what_is_held_out_is_nobodys_training_example(how):
    config = ExperimentConfig.model_validate(
        {"privacy": NONE, "experiment": {"nodes": 3, "partition": how}}
    )
    train, _ = data.public_sets(config.task)
    rows = held_out(run(validation={"size": 200}), labels())
    parts = partition.divide(config.experiment, train, rows)
    assert not set(np.concatenate(parts)) & set(rows)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) >= len(train) - 200 - 6


def test_a_daemon_whose_rows_overlap_it_is_told(tmp_path):
    sealed_run = sealed(run())
    rows = held_out(sealed_run, labels())
    file = tmp_path / "rows.npy"
    own = DataSection(rows=file)
    np.save(file, np.r_[np.setdiff1d(np.arange(50), rows), rows[:1]])
    with pytest.raises(DataError, match="overlaps the validation set"):
        make(sealed_run, own)
    np.save(file, np.setdiff1d(np.arange(50), rows))
    assert make(sealed_run, own).validation


def test_too_large_a_set_is_a_sentence():
    with pytest.raises(ConfigurationError, match=r"which has \d+; lower it"):
        held_out(run(validation={"size": 1400}), labels())


def test_other_data_under_the_same_name_are_noticed():
    config = run(validation={"size": 50, "digest": "0" * 64})
    with pytest.raises(DataError, match="not the one the run was made with"):
        make(config, np.setdiff1d(np.arange(100), held_out(config, labels())))


# own data: a file


def npz(path: Path, n: int, seed: int, side: int = 8) -> Path:
    chance = np.random.default_rng(seed)
    np.savez(path, x=chance.random((n, side, side), dtype=np.float32), y=np.arange(n) % 10)
    return path


@pytest.fixture
def files(tmp_path):
    return npz(tmp_path / "mine.npz", 40, 1), npz(tmp_path / "shared.npz", 20, 2)


def own(files, **section):
    mine, shared = files
    digest = hashlib.sha256(shared.read_bytes()).hexdigest()
    config = run(task={"data": "own"}, validation={"digest": digest, **section})
    return config, DataSection(name="d", path=mine, validation=shared)


def test_own_data_are_validated_on_the_file(files):
    config, section = own(files)
    assert make(config, section).validation


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda shared, mine: shared.unlink(), "can't be read"),
        (lambda shared, mine: npz(shared, 20, 3), "not the validation set of this run"),
        (lambda shared, mine: shared.write_bytes(b"no npz"), "not the validation set of this run"),
    ],
)
def test_a_file_that_is_missing_or_another_one_is_a_sentence(files, spoil, says):
    config, section = own(files)
    spoil(files[1], files[0])
    with pytest.raises(DataError, match=says):
        make(config, section)


def test_a_set_of_another_shape_is_a_sentence(files):
    npz(files[1], 20, 2, side=9)
    config, section = own(files)
    with pytest.raises(DataError, match=r"shape \(1, 9, 9\)"):
        make(config, section)


def test_nobody_else_learns_that_a_set_has_private_records(files, capsys):
    """Whoever writes the file could ask for membership by what a host does: it starts as always,
    values on the same set as all, and tells its operator.
    """
    with np.load(files[0]) as mine, np.load(files[1]) as shared:
        x, y = (
            np.concatenate([shared["x"], mine["x"][:3]]),
            np.concatenate([shared["y"], mine["y"][:3]]),
        )
    np.savez(files[1], x=x, y=y)
    config, section = own(files)
    task = make(config, section)
    told = capsys.readouterr().err
    assert "overlaps the training data (3 examples). Nobody else is told." in told

    other = DataSection(
        name="d", path=npz(files[0].with_name("other.npz"), 40, 3), validation=files[1]
    )
    values = [value(each, task.initial_parameters(1)) for each in (task, make(config, other))]
    assert values[0] == values[1], "on the same set"
    assert "overlaps" not in capsys.readouterr().err


def value(task, x):
    return task.validation.validate(views(task.layout, x), "loss")


def test_without_one_an_algorithm_that_needs_it_says_what_to_do(files):
    mine = DataSection(name="d", path=files[0])
    with pytest.raises(
        ConfigurationError, match=r"set validation\.size, or with own data validation\.path"
    ):
        check_compatible(find("ross"), make(run(task={"data": "own"}), mine))
    with pytest.raises(ConfigurationError, match=r"needs validation\.path"):
        sealed(run(task={"data": "own"}))


def test_a_file_serves_public_data_too(tmp_path):
    shared = npz(tmp_path / "shared.npz", 20, 2)
    config = sealed(run(validation={"path": shared}))
    assert config.validation.digest == hashlib.sha256(shared.read_bytes()).hexdigest()
    assert len(held_out(config, labels())) == 0
    train, _ = data.public_sets(config.task)
    assert isinstance(train, data.Examples)
    found = load(config, np.arange(9), train)
    assert found is not None
    assert len(found) == 20


# the utility


def task(module=None):
    chance = torch.Generator().manual_seed(1)
    examples = [
        Examples(
            torch.rand(n, 1, 8, 8, generator=chance), torch.randint(10, (n,), generator=chance)
        )
        for n in (30, 50)
    ]
    build = module or (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    )
    return Classification(build, examples[0], None, examples[1])


def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


def asked(it, k=5, m=BATCH + 3):
    chance = torch.Generator().manual_seed(2)
    x, moves = it.initial_parameters(1), 0.1 * torch.randn(k, it.layout.size, generator=chance)
    return x, moves, torch.rand(m, k, generator=chance)


def valued(scorer, kind, x, moves, shares):
    return scorer.around(x, moves, kind)(shares)


def plainly(it, kind, x, moves, shares):
    return [float(it.validate(views(it.layout, x + share @ moves), kind)) for share in shares]


@pytest.mark.parametrize("kind", ["accuracy", "neg_loss"])
@pytest.mark.parametrize(
    "module", [None, conv, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))]
)
def test_values_are_those_of_the_moved_models(module, kind):
    it = task(module)
    found = valued(ValidationScorer(it), kind, *asked(it))
    assert found == pytest.approx(
        plainly(it, kind, *asked(it)), abs=1e-5 if kind == "neg_loss" else 0.021
    )


def test_a_linear_first_layer_is_multiplied_once_per_move(monkeypatch):
    """k + 1 products, not one per model."""
    it, products = task(), []
    whole = nn.functional.linear

    def counted(x, *rest):
        products.append(x.shape[-1])
        return whole(x, *rest)

    monkeypatch.setattr(nn.functional, "linear", counted)
    valued(ValidationScorer(it), "accuracy", *asked(it, k=5, m=32))
    assert products.count(64) == 6
    products.clear()
    plainly(it, "accuracy", *asked(it, k=5, m=32))
    assert products.count(64) == 32, "power"


def test_all_at_once_is_one_after_the_other():
    it = task(conv)
    scorer = ValidationScorer(it)
    one = valued(scorer, "neg_loss", *asked(it))
    scorer._batched = True
    assert valued(scorer, "neg_loss", *asked(it)) == pytest.approx(one, abs=1e-5)
    x, moves, shares = asked(it)
    assert isinstance(scorer._faster(x, moves, shares, "neg_loss"), bool)


def test_the_scorer_yields_between_evaluations():
    breaths, it = [], task(conv)
    valued(ValidationScorer(it, lambda: breaths.append(1)), "accuracy", *asked(it, m=4))
    assert len(breaths) == 4


def test_its_gradient_is_that_of_the_mean_loss():
    it = task()
    x = it.initial_parameters(3)
    found = ValidationScorer(it).gradient(x)
    direction = torch.randn(it.layout.size, generator=torch.Generator().manual_seed(5))
    step = 1e-3 * direction / direction.norm()
    loss = [
        -plainly(it, "neg_loss", x, step.unsqueeze(0), torch.tensor([[sign]]))[0]
        for sign in (1.0, -1.0)
    ]
    assert float(found @ step) == pytest.approx((loss[0] - loss[1]) / 2, rel=0.02)


@pytest.mark.parametrize("public", [True, False])
def test_a_private_one_is_said_beside_every_epsilon_of_the_journal(tmp_path, public):
    strict = {"mode": "strict", "sigma": 2.0, "rate": 0.1, "batch": 30}
    config = ExperimentConfig.model_validate(
        {
            "algorithm": {"name": "pdsl"},
            "privacy": strict,
            "train": {"rounds": 1},
            "experiment": {"nodes": 3},
            "validation": {"public": public},
        }
    )
    simulate(config, tmp_path)
    told = [
        it
        for it in journal.read(tmp_path / "nodes" / "n1" / "journal.jsonl")
        if it["event"] == "epsilon"
    ]
    assert len(told) == 1
    assert ("the validation set is private" in told[0]["against"]) is not public
