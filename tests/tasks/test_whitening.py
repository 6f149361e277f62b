"""Images in coordinates in which public ones vary alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from kit.clusters import experiment
from node.config import DataSection, RunConfig
from node.config.loading import drop_none
from node.data import Examples, public_sets
from node.data import whitening as module
from node.data.whitening import Whitening
from node.experiments import run_folder
from node.experiments.in_process import simulate
from node.learning.use import load
from node.records import checkpoint
from node.task import views
from node.tasks import sets
from node.tasks.classification import make
from node.tasks.validation import held_out, sealed
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
    generator = torch.Generator().manual_seed(3)
    moved = public * (1 + 1e-7 * torch.randn(public.shape, generator=generator))
    z, other = Whitening.of(public, DAMPING)(others), Whitening.of(moved, DAMPING)(others)
    torch.testing.assert_close(z, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [23, 24, 25, 200])
def test_what_public_examples_never_vary_in_is_left_out(n: int) -> None:
    """However many they are: pixels at an image's edge, which a private image may light."""
    public = images(n, 4, 6)
    public[:, 0] = 0.3
    lit = public.clone()
    lit[:, 0] = 5
    whitening = Whitening.of(public, DAMPING)
    torch.testing.assert_close(whitening(lit), whitening(public), rtol=1e-3, atol=1e-3)


def test_an_example_has_the_same_bits_among_any_others() -> None:
    examples = images(2 * module.AT_ONCE + 3, 4, 6)
    whitening = Whitening.of(examples[:10], DAMPING)
    every = whitening(examples)
    for n in (0, 1, 5, module.AT_ONCE, module.AT_ONCE + 7):
        assert torch.equal(every[:n], whitening(examples[:n]))


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
        ({"validation": {}}, r"learns from the validation set: set validation\.size"),
        (
            {"validation": {"digest": "0" * 64}},
            r"learns from the validation set: set validation\.size",
        ),
        (
            {"task": {**DIGITS, "data": "own"}, "validation": PUBLIC},
            r"learns from the validation set: set validation\.path",
        ),
        ({"task": {**DIGITS, "model": "lenet"}}, "no picture that lenet could look at"),
        ({"task": {**DIGITS, "name": "own.py:make"}}, r"own\.py:make makes its own features"),
        ({"validation": {**PUBLIC, "public": False}}, r"is private; whiten by a public one"),
        ({"task": {**DIGITS, "text": {}}}, "whiten is for images"),
        ({"task": {**DIGITS, "whiten": 0}}, "greater than or equal to"),
    ],
    ids=[
        "no public examples",
        "only their digest",
        "own data",
        "a convolution",
        "an own task",
        "private ones",
        "text",
        "no damping",
    ],
)
def test_what_can_not_be_whitened_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=sentence):
        experiment(**{"task": DIGITS, "validation": PUBLIC, **changes})


def test_a_run_is_fed_what_its_public_examples_make_of_images(tmp_path: Path) -> None:
    run = experiment(nodes=2, rounds=3, task=DIGITS, validation=PUBLIC)
    mine = np.setdiff1d(np.arange(100), held_out(run, public_sets(run.task)[0].y.numpy()))
    plain, _, public = sets.load(unwhitened(run), mine)
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


def arrays(folder: Path, **files: int) -> dict[str, Path]:
    """Files of so many digits each, none in two of them."""
    train, _ = public_sets(experiment().task)
    assert isinstance(train, Examples)
    made, start = {}, 0
    for name, count in files.items():
        made[name] = folder / f"{name}.npz"
        x, y = (each[start : start + count].numpy() for each in (train.x, train.y))
        np.savez(made[name], x=x, y=y)
        start += count
    return made


def test_hosts_need_the_digest_of_what_they_whiten_by(tmp_path: Path) -> None:
    """Else each would be fed what its own file makes of its images."""
    files = arrays(tmp_path, mine=60, public=40)
    own = {**DIGITS, "data": "own", "value_range": [0, 1]}
    run = experiment(task=own, validation={"path": str(files["public"])}).run_config
    data = DataSection(path=files["mine"], name="mine", validation=files["public"])
    assert sets.load(sealed(run), data)[0].shape == (1, 1, 40)
    with pytest.raises(ConfigurationError, match=r"with its digest in run\.toml.*pack write it\."):
        sets.load(run, data)
    pathless = sealed(run).validation.model_copy(update={"path": None})
    hosts = sealed(run).model_copy(update={"validation": pathless})
    with pytest.raises(ConfigurationError, match=r"set data\.validation in the node's file\."):
        sets.load(hosts, data.model_copy(update={"validation": None}))


@pytest.mark.parametrize("model", ["softmax", "mlp"])
def test_an_exported_model_is_fed_images(tmp_path: Path, model: str) -> None:
    run = experiment(nodes=2, rounds=3, task={**DIGITS, "model": model}, validation=PUBLIC)
    folder, file = tmp_path / "run", tmp_path / "m.safetensors"
    assert simulate(run, folder).params_digest
    (folder / "run.toml").write_text(tomli_w.dumps(written(sealed(run.run_config))))
    run_folder.export(folder, folder / "model.safetensors", file)
    exported = load(file)
    assert exported.info.task.whiten is None
    assert exported.info.input_shape == (1, 8, 8)
    resolved = sealed(run.run_config)
    _, test, _ = sets.load(resolved, np.arange(0))
    _, plain, _ = sets.load(unwhitened(resolved), np.arange(0))
    assert test is not None
    assert plain is not None
    task = make(resolved, np.arange(0))
    _, x = checkpoint.load_model(folder / "model.safetensors")
    outputs = task._outputs(views(task.layout, x), test.x, train=False)
    torch.testing.assert_close(exported(plain.x), outputs, rtol=1e-3, atol=1e-4)


def test_a_start_in_other_coordinates_is_another_model(tmp_path: Path) -> None:
    run = experiment(nodes=2, rounds=3, task=DIGITS, validation=PUBLIC)
    simulate(run, tmp_path / "run")
    start = {"start": str(tmp_path / "run" / "model.safetensors"), "rounds": 3}
    again = partial(experiment, nodes=2, rounds=3, train=start)
    simulate(again(task=DIGITS, validation=PUBLIC), tmp_path / "again")
    for task in ({**DIGITS, "whiten": 0.5}, {**DIGITS, "transform": "scattering"}):
        with pytest.raises(DataError, match=r"model of other inputs|another model"):
            simulate(again(task=task, validation=PUBLIC), tmp_path / "other")


def written(run: RunConfig) -> dict[str, Any]:
    return drop_none(run.model_dump(mode="json", exclude_defaults=True))


def unwhitened(run: RunConfig) -> RunConfig:
    return run.model_copy(update={"task": run.task.model_copy(update={"whiten": None})})
