"""Images in coordinates in which public ones vary alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kit.clusters import experiment
from node.data import public_sets
from node.data.whitening import Whitening
from node.experiments.in_process import simulate
from node.tasks import sets
from node.tasks.validation import held_out
from peer.errors import ConfigurationError, DataError

DAMPING = 0.01
DIGITS = {"data": "digits", "model": "softmax", "whiten": DAMPING}
PUBLIC = {"size": 40}


def images(n: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Whose values vary by very different amounts, and with one another."""
    generator = torch.Generator().manual_seed(seed)
    values = int(np.prod(shape))
    mixing = torch.randn(values, values, generator=torch.Generator().manual_seed(0))
    scales = torch.logspace(0, -3, values)
    x = (torch.randn(n, values, generator=generator) * scales) @ mixing + 5
    return x.view(n, *shape)


@pytest.mark.parametrize("n", [10, 200], ids=["fewer than values", "more than values"])
def test_inner_products_are_those_of_the_damped_inverse_covariance(n: int) -> None:
    """Which fixes z up to a rotation; of other examples, too, in Q's directions."""
    public, others = images(n, 2, 3, 4), images(5, 2, 3, 4, seed=2)
    x, y = public.flatten(1).double(), others.flatten(1).double()
    covariance = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    variances, axes = torch.linalg.eigh(covariance)
    axes = axes[:, -min(n - 1, 24) :]  # those in which Q varies at all
    inverse = (
        axes @ torch.diag(1 / (variances[-axes.shape[1] :] + DAMPING * variances[-1])) @ axes.T
    )
    whitening = Whitening.of(public, DAMPING)
    for examples, rows in ((public, x), (others, y)):
        z = whitening(examples)
        assert z.shape == (len(examples), 1, 1, min(n, 24))
        rows = rows - x.mean(0)
        expected = (rows @ inverse @ rows.T).float()
        torch.testing.assert_close(z.flatten(1) @ z.flatten(1).T, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [10, 200])
def test_what_varies_much_varies_alike(n: int) -> None:
    z = Whitening.of(images(n, 4, 6), 1e-6)(images(n, 4, 6)).flatten(1)
    variances = torch.linalg.eigvalsh(torch.cov(z.T).double())
    assert variances[-5:] == pytest.approx(torch.ones(5), abs=0.01)


@pytest.mark.parametrize("n", [10, 200])
def test_the_last_bits_of_public_data_turn_nothing(n: int) -> None:
    """Hosts compute it for themselves; principal axes would change their signs."""
    public, others = images(n, 4, 6), images(5, 4, 6, seed=2)
    moved = public * (1 + 1e-7 * torch.randn(public.shape))
    z, other = Whitening.of(public, DAMPING)(others), Whitening.of(moved, DAMPING)(others)
    torch.testing.assert_close(z, other, rtol=1e-3, atol=1e-3)


def test_copies_of_an_example_are_directions_of_nothing() -> None:
    public = images(6, 4, 6)
    twice = torch.cat([public, public])
    once, doubled = Whitening.of(public, DAMPING)(public), Whitening.of(twice, DAMPING)(public)
    share = (11 / 12) / (5 / 6)  # n − 1 divides, so that the copies' variances are smaller
    torch.testing.assert_close(
        doubled.flatten(1) @ doubled.flatten(1).T,
        share * once.flatten(1) @ once.flatten(1).T,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("n", [0, 1, 3])
def test_examples_that_are_all_alike_are_a_sentence(n: int) -> None:
    with pytest.raises(DataError, match=r"differ from one another; give \[validation\] more"):
        Whitening.of(torch.ones(n, 1, 4, 6), DAMPING)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation": {}}, r"there is none: set validation\.size or validation\.path"),
        ({"validation": {**PUBLIC, "public": False}}, r"is private; whiten by a public one"),
        ({"task": {**DIGITS, "text": {}}}, "whiten is for images"),
        ({"task": {**DIGITS, "whiten": 0}}, "greater than 0"),
    ],
    ids=["no public examples", "private ones", "text", "no damping"],
)
def test_what_can_not_be_whitened_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=sentence):
        experiment(**{"task": DIGITS, "validation": PUBLIC, **changes})


def test_a_run_is_fed_what_its_public_examples_make_of_images(tmp_path: Path) -> None:
    run = experiment(nodes=2, rounds=3, task=DIGITS, validation=PUBLIC)
    as_they_are = run.model_copy(update={"task": run.task.model_copy(update={"whiten": None})})
    mine = np.setdiff1d(np.arange(100), held_out(run, public_sets(run.task)[0].y.numpy()))
    plain, _, public = sets.load(as_they_are, mine)
    assert public is not None
    whitening = Whitening.of(public.x, DAMPING)
    train, test, whitened = sets.load(run, mine)
    assert torch.equal(train.x, whitening(plain.x))
    assert train.shape == (1, 1, 40)
    assert test is not None
    assert whitened is not None
    assert test.shape == whitened.shape == train.shape
    assert sets.inputs(train, run.task)["whiten"] == "0.01, of the validation set"
    assert simulate(run, tmp_path).params_digest


def test_public_images_alone_are_whitened_by_themselves(tmp_path: Path) -> None:
    run = experiment(
        nodes=2, rounds=3, task=DIGITS, validation=PUBLIC, algorithm={"name": "public", "lr": 0.1},
        privacy={"mode": "none", "sigma": None},
    )  # fmt: skip
    assert simulate(run, tmp_path).params_digest
