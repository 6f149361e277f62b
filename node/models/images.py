"""Small image classifiers. Input [n, channels, height, width], output logits [n, classes]."""

from __future__ import annotations

from math import prod

from torch import nn

from node.config import TaskSection
from peer.errors import ConfigurationError


def softmax(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """Softmax regression: one linear layer on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), task.outputs))


def mlp(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """One hidden layer of `task.hidden` rectified units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), task.hidden),
        nn.ReLU(),
        nn.Linear(task.hidden, task.outputs),
    )


def lenet(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-5 with rectified units and max pooling, after LeCun et al. 1998; 61,706 parameters for
    1×28×28 and ten classes.

    Raises:
        ConfigurationError: the images are smaller than 16×16.
    """
    channels, height, width = shape
    if min(height, width) < 16:
        raise ConfigurationError(
            "The model lenet needs images of at least 16×16; set task.image_size = 28."
        )
    padding = 2 if min(height, width) < 32 else 0  # LeNet was made for 32×32
    after = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * prod(after), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, task.outputs),
    )  # fmt: skip


def cnn(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """The papers' CNN for MNIST: conv5×5-16, pool, conv5×5-32, pool, fc 1568-10; 28,938 parameters
    for ten classes.

    Raises:
        ConfigurationError: the images are not 1×28×28.
    """
    _only("cnn", shape, (1, 28, 28))
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, task.outputs),
    )  # fmt: skip


def cnn_cifar(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """The papers' CNN for CIFAR: conv3×3-16, pool, conv3×3-32, pool, fc 2048-512-10 with dropout;
    1,059,306 parameters for ten classes. `task.dropout` is 0 by default, the authors' code has 0.4.

    Raises:
        ConfigurationError: the images are not 3×32×32.
    """
    _only("cnn-cifar", shape, (3, 32, 32))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 512), nn.ReLU(), nn.Dropout(task.dropout),
        nn.Linear(512, task.outputs),
    )  # fmt: skip


def _only(name: str, shape: tuple[int, int, int], needed: tuple[int, int, int]) -> None:
    if shape != needed:
        actual, wanted = ("×".join(map(str, it)) for it in (shape, needed))
        raise ConfigurationError(
            f"The model {name} needs images of {wanted}, not {actual}; set task.image_size = "
            f"{needed[1]}."
        )
