"""The classification task and its models."""

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from node import data, models, tasks
from node.config import DataSection, RunConfig
from node.task import views
from node.tasks.classification import EVALUATION_CHUNK, Classification
from peer.errors import ConfigurationError, DataError

ROWS = np.arange(0, 400, 2)


def run(**task: object) -> RunConfig:
    return RunConfig.model_validate({"privacy": {"mode": "none"}, "task": task})


@pytest.fixture(params=["softmax", "mlp", "cnn"])
def task(request):
    size = {"image_size": 28} if request.param == "cnn" else {}
    return tasks.make(run(model=request.param, hidden=12, **size), ROWS)


def test_the_papers_cnn_has_28938_parameters():
    cnn = tasks.make(run(model="cnn", image_size=28), ROWS)
    assert cnn.layout.size == 28_938
    assert [shape for _, shape in cnn.layout.fields] == [
        (16, 1, 5, 5), (16,), (32, 16, 5, 5), (32,), (10, 1568), (10,),
    ]  # fmt: skip


def test_the_cnn_refuses_other_images():
    with pytest.raises(ConfigurationError, match=r"1×28×28, not 1×8×8; set task.image_size = 28"):
        tasks.make(run(model="cnn"), ROWS)


def test_sizes_of_the_small_models():
    assert tasks.make(run(model="softmax"), ROWS).layout.size == 64 * 10 + 10
    assert tasks.make(run(model="mlp", hidden=5), ROWS).layout.size == 64 * 5 + 5 + 5 * 10 + 10


def test_start_is_the_modules_own_initialization_and_leaves_the_global_generator_alone(task):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    x = task.initial_parameters(7)
    assert torch.equal(before, torch.random.get_rng_state())
    assert x.shape == (task.layout.size,)
    assert x.dtype == torch.float32
    assert torch.equal(x, task.initial_parameters(7))
    assert not torch.equal(x, task.initial_parameters(8))
    torch.manual_seed(7)
    shape = task.batch(torch.tensor([0]))[0].shape[1:]
    name = {650: "softmax", 910: "mlp", 28938: "cnn"}[task.layout.size]
    module = models.build(run(model=name, hidden=12).task, tuple(shape))
    assert torch.equal(x, torch.cat([p.detach().reshape(-1) for p in module.parameters()]))


def test_start_is_the_same_while_other_threads_start(task):
    """Whole nodes live in threads of one process in tests; torch's generator is one for all."""
    started: list[Any] = []

    def work():
        started.extend(task.initial_parameters(7) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 200
    assert all(torch.equal(x, started[0]) for x in started)


def test_images_are_standardized_by_public_constants():
    plain, scaled = (
        tasks.make(run(**section), ROWS) for section in ({}, {"mean": [0.3], "std": [0.25]})
    )
    (x, _), (z, _) = (it.batch(torch.arange(9)) for it in (plain, scaled))
    torch.testing.assert_close(z, (x - 0.3) / 0.25)
    with pytest.raises(ConfigurationError, match="has 3 figures, the images have 1 channels"):
        tasks.make(run(mean=[0.5] * 3, std=[0.5] * 3), ROWS)
    for wrong in ({"mean": [0.5]}, {"mean": [0.5], "std": [0.0]}):
        with pytest.raises(ValueError, match="must be positive"):
            run(**wrong)


def test_stages_are_the_modules_that_have_parameters():
    mlp = tasks.make(run(model="mlp", hidden=5), ROWS)
    assert [len(stage) for stage in mlp.layer_groups] == [2, 2]
    assert [name for stage in mlp.layer_groups for name in stage] == [
        name for name, _ in mlp.layout.fields
    ]


def test_layout_does_not_depend_on_the_rows(task):
    other = tasks.make(run(model="softmax"), np.array([5]))
    assert other.layout.digest == tasks.make(run(model="softmax"), ROWS).layout.digest
    assert task.num_examples == len(ROWS)


def test_the_mean_of_single_losses_is_the_mean_loss(task):
    x, batch = task.initial_parameters(0), task.batch(torch.tensor([0, 3, 4, 9]))
    single = torch.stack(
        [
            task.loss(views(task.layout, x), (image, label))
            for image, label in zip(*batch, strict=True)
        ]
    )
    torch.testing.assert_close(single.mean(), task.mean_loss(views(task.layout, x), batch))


def test_vmapped_gradients_are_the_modules_own(task):
    """The oracle is plain autograd on the nn.Module."""
    x, batch = task.initial_parameters(0), task.batch(torch.tensor([0, 3, 4, 9]))
    each = vmap(grad(task.loss), in_dims=(None, 0))(views(task.layout, x), batch)
    shape = tuple(batch[0].shape[1:])
    name = {650: "softmax", 910: "mlp", 28938: "cnn"}[task.layout.size]
    module = models.build(run(model=name, hidden=12).task, shape)
    torch.nn.utils.vector_to_parameters(x, module.parameters())
    torch.nn.functional.cross_entropy(module(batch[0]), batch[1]).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_has_no_rows(task):
    images, labels = task.batch(torch.zeros(0, dtype=torch.int64))
    assert len(images) == len(labels) == 0


def test_batches_are_the_nodes_own_rows():
    task = tasks.make(run(), ROWS)
    train, _ = data.digits()
    assert torch.equal(task.batch(torch.tensor([1, 5]))[0], train.x[[2, 10]])


def test_evaluate_agrees_with_a_plain_count_and_breathes_between_chunks():
    task = tasks.make(run(), ROWS)
    x, breaths = task.initial_parameters(0), []
    result = task.evaluate(x, yield_point=lambda: breaths.append(1))
    _, test = data.digits()
    weight, bias = views(task.layout, x).values()
    logits = test.x.flatten(1) @ weight.T + bias
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == test.y).double().mean()))
    assert result["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, test.y)), rel=1e-5
    )
    assert len(breaths) == -(-len(test) // EVALUATION_CHUNK) - 1 == 1


def test_a_model_that_is_not_finite_is_evaluated_all_the_same():
    task = tasks.make(run(), ROWS)
    result = task.evaluate(torch.full((task.layout.size,), float("nan")))
    assert 0 <= result["accuracy"] <= 1
    assert np.isnan(result["loss"])


def test_many_threads_share_one_task():
    """functional_call swaps parameters inside a module: with one module for all threads results get
    mixed up.
    """
    task = tasks.make(run(model="mlp", hidden=32), ROWS)
    xs = [task.initial_parameters(seed) for seed in range(4)]
    batch = task.batch(torch.arange(20))
    alone = [task.mean_loss(views(task.layout, x), batch) for x in xs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(150):
            try:
                same = torch.equal(task.mean_loss(views(task.layout, xs[k]), batch), alone[k])
            except RuntimeError:
                same = False
            if not same:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_learning_works():
    """A few hundred plain gradient steps on a fifth of the digits beat 85 % on the public test
    set.
    """
    task = tasks.make(run(), np.arange(0, 1438, 5))
    x, batch = task.initial_parameters(0), task.batch(torch.arange(task.num_examples))
    losses = []
    for _ in range(200):
        gradient = grad(lambda x: task.mean_loss(views(task.layout, x), batch))(x)
        x = x - 0.5 * gradient
        losses.append(float(task.mean_loss(views(task.layout, x), batch)))
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert task.evaluate(x)["accuracy"] > 0.85


def test_batch_normalization_is_refused():
    """It mixes the examples of a batch: one record's influence would have no bound."""
    train, test = data.digits()
    with pytest.raises(ConfigurationError, match="BatchNorm2d"):
        Classification(
            lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)), train, test
        )
    Classification(
        lambda: nn.Sequential(nn.GroupNorm(1, 1), nn.Flatten(), nn.Linear(64, 10)), train, test
    )


def own(folder, name: str, n: int = 6, size: int = 5):
    images = np.random.default_rng(0).random((n, size, size))
    np.savez(folder / name, x=images, y=np.arange(n) % 3)
    return folder / name


def test_own_data(tmp_path):
    path = own(tmp_path, "mine.npz")
    task = tasks.make(run(data="own", classes=3), DataSection(name="wards", path=path))
    assert (task.num_examples, task.layout.size) == (6, 25 * 3 + 3)
    assert task.evaluate(task.initial_parameters(0)) == {}
    with_test = DataSection(name="wards", path=path, test=own(tmp_path, "test.npz", n=9))
    assert set(
        tasks.make(run(data="own", classes=3), with_test).evaluate(task.initial_parameters(0))
    ) == {
        "accuracy",
        "loss",
    }


@pytest.mark.parametrize(
    ("task", "section", "error", "sentence"),
    [
        (
            {"name": "poetry"},
            {},
            ConfigurationError,
            "Unknown task 'poetry'; choose one of causal-lm, classification",
        ),
        (
            {"model": "gpt"},
            {},
            ConfigurationError,
            "Unknown model 'gpt'; choose one of cnn, cnn-cifar, lenet, mlp",
        ),
        ({"classes": 9}, {}, ConfigurationError, "too few for digits"),
        ({}, {"path": "mine.npz"}, ConfigurationError, "set task.data to own"),
        ({"data": "own"}, {"name": "a"}, ConfigurationError, "needs data.path"),
        ({"data": "own"}, {"path": "mine.npz"}, ConfigurationError, "needs data.name"),
        ({"data": "own"}, None, ConfigurationError, "needs real nodes"),
        (
            {"data": "own"},
            {"name": "a", "path": "mine.npz", "test": "test.npz"},
            DataError,
            "Test images have shape",
        ),
    ],
)
def test_wrong_combinations_are_one_sentence(tmp_path, monkeypatch, task, section, error, sentence):
    own(tmp_path, "mine.npz")
    own(tmp_path, "test.npz", size=6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence):
        tasks.make(run(**task), ROWS if section is None else DataSection.model_validate(section))
