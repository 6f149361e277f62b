"""Models: functions from a task's section and an image's shape to an `nn.Module` that gives logits
[n, classes].
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from torch import nn

from node.config import TaskSection
from peer.errors import ConfigurationError

MODELS: Mapping[str, str] = {
    "softmax": "node.models.images:softmax",
    "mlp": "node.models.images:mlp",
    "lenet": "node.models.images:lenet",
    "cnn": "node.models.images:cnn",
    "cnn-cifar": "node.models.images:cnn_cifar",
    "resnet8": "node.models.resnet:resnet8",
}
"""name -> module:function. A new model: one function, one line here."""


def check_name(name: str) -> None:
    """Raises ConfigurationError: no model of that name."""
    if name not in MODELS:
        raise ConfigurationError(
            f"Unknown model {name!r}; choose one of {', '.join(sorted(MODELS))}."
        )


def build(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """The model for images of this shape (channels, height, width).

    Raises:
        ConfigurationError: no model of that name, or it does not fit the images.
    """
    check_name(task.model)
    module, _, function = MODELS[task.model].partition(":")
    model: nn.Module = getattr(import_module(module), function)(task, shape)
    return model
