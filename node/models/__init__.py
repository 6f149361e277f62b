"""Models: functions from a task's section and an image's shape to an `nn.Module`.

Its input is [n, channels, height, width], its output [n, outputs]: logits of the classes, or the
number of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from node.config import TaskSection
from peer.tables import check_entry, load_entry

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
    check_entry(MODELS, name, "model")


def build(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """The model for images of this shape (channels, height, width).

    Raises:
        ConfigurationError: no model of that name, or it does not fit the images.
    """
    model: nn.Module = load_entry(MODELS, task.model, "model")(task, shape)
    return model
