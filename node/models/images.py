"""Small image classifiers. Input [n, channels, height, width], output logits [n, classes]."""

from __future__ import annotations

from math import prod

from torch import nn

from node.config import TaskSection
from peer.errors import ConfigurationError


def softmax(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """Softmax regression: one linear layer on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), task.classes))


def mlp(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """One hidden layer of `task.hidden` rectified units."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), task.hidden), nn.ReLU(), nn.Linear(task.hidden, task.classes)
    )


def cnn(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """The papers' CNN for MNIST: conv5×5-16, pool, conv5×5-32, pool, fc 1568-10; 28,938 parameters for ten classes.

    Raises:
        ConfigurationError: the images are not 1×28×28.
    """
    if shape != (1, 28, 28):
        found = "×".join(map(str, shape))
        raise ConfigurationError(f"The model cnn needs images of 1×28×28, not {found}; set task.image_size = 28.")
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, task.classes),
    )  # fmt: skip
