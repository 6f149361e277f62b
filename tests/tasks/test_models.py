"""The models: sizes, shapes, and gradients one by one."""

from __future__ import annotations

import pytest
import torch

from node.config import TaskSection
from node.data import Examples
from node.maths.backends import probe
from node.maths.clipping import clipped_sum
from node.maths.purity import keyed_seeds
from node.models import MODELS, build
from node.tasks.classification import Classification
from peer.errors import ConfigurationError

SHAPES = {
    "softmax": ((1, 28, 28), 7_850),
    "mlp": ((1, 28, 28), 50_890),
    "lenet": ((1, 28, 28), 61_706),
    "cnn": ((1, 28, 28), 28_938),
    "cnn-cifar": ((3, 32, 32), 1_059_306),
    "resnet8": ((3, 32, 32), 77_850),
}


def task(model: str, n: int = 20, **options: float) -> Classification:
    generator, (shape, _) = torch.Generator().manual_seed(1), SHAPES[model]
    x, y = (
        torch.rand(n, *shape, generator=generator),
        torch.randint(0, 10, (n,), generator=generator),
    )
    section = TaskSection(model=model, **options)  # type: ignore[arg-type]
    return Classification(lambda: build(section, shape), Examples(x, y), Examples(x, y))


def test_every_model_is_here() -> None:
    assert SHAPES.keys() == MODELS.keys()


@pytest.mark.parametrize("model", MODELS)
def test_sizes_and_gradients_one_by_one(model: str) -> None:
    """Every backend that takes it agrees with the loop; ghost takes what has linear layers only."""
    it = task(model)
    assert it.layout.size == SHAPES[model][1]
    x = it.initial_parameters(1)
    linear = model in ("softmax", "mlp")
    assert probe(it) == ("ghost" if linear else "vmap")
    assert (it.factors() is not None) == linear
    rows = torch.arange(3)
    vmapped, looped = (
        clipped_sum(it, x, rows, 1.0, backend=backend) for backend in ("vmap", "loop")
    )
    assert float((vmapped - looped).norm()) < 1e-5
    assert 0 < float(vmapped.norm()) <= 3 + 1e-5
    assert 0 <= it.evaluate(x)["accuracy"] <= 1


def test_lenet_of_32_pixels_is_the_original_size() -> None:
    section = TaskSection(model="lenet")
    assert sum(p.numel() for p in build(section, (1, 32, 32)).parameters()) == 61_706


@pytest.mark.parametrize(
    ("model", "needs"), [("cnn", "1×28×28"), ("cnn-cifar", "3×32×32"), ("lenet", "at least 16×16")]
)
def test_images_that_do_not_fit_are_one_sentence(model: str, needs: str) -> None:
    with pytest.raises(ConfigurationError, match=f"needs images of {needs}.*set task.image_size"):
        build(TaskSection(model=model), (1, 8, 8))


def test_dropout_is_on_for_gradients_off_for_evaluation_and_clipped_by_the_loop() -> None:
    it = task("cnn-cifar", 4, dropout=0.4)
    x, rows = it.initial_parameters(1), torch.arange(4)
    assert it.evaluate(x) == it.evaluate(x)
    assert probe(it) == "loop"
    asked = [
        clipped_sum(it, x, rows, 1.0, backend="loop", seeds=keyed_seeds(key))
        for key in (b"1", b"1", b"2")
    ]
    first, again, second = asked
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert float(first.norm()) <= 4 * (1 + 1e-6)
