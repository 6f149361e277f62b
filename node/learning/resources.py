"""What a task offers, compared with what an algorithm needs, and given to it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from node.algorithms import Algorithm, Capability, Gradients, Resources
from node.hooks import no_op
from node.task import Task
from node.tasks.validation import ValidationScorer
from peer.errors import ConfigurationError
from peer.message import Peer

REFUSALS = {
    Capability.VALIDATION: "The algorithm values what it hears on a validation set, and there is "
    "none: set validation.size, or with own data validation.path before pack (data.validation in a "
    "node's file).",
    Capability.LAYERS: "The task names no layers (layer_groups), so they can't be trained block by "
    "block.",
    Capability.ADAPTERS: "dec-lora averages adapters; set task.text.lora_rank (task.name = "
    '"causal-lm"), or take dsgd-adam.',
}


def capabilities(task: Task) -> frozenset[Capability]:
    """What algorithms may ask of the task."""
    offered = {
        Capability.VALIDATION: task.validation is not None,
        Capability.LAYERS: bool(task.layer_groups),
        Capability.ADAPTERS: task.adapted,
    }
    return frozenset(capability for capability, there in offered.items() if there)


def check_compatible(algorithm: type[Algorithm], task: Task) -> None:
    """Raises ConfigurationError: the algorithm needs what the task does not have."""
    missing = algorithm.NEEDS - capabilities(task)
    for capability in Capability:
        if capability in missing:
            raise ConfigurationError(REFUSALS[capability])


def resources(
    algorithm: type[Algorithm],
    task: Task,
    *,
    me: Peer,
    start: Tensor,
    gradients: Gradients,
    yield_point: Callable[[], None] = no_op,
) -> Resources:
    """What one node's algorithm is made with.

    Raises:
        ConfigurationError: the algorithm needs what the task does not have.
    """
    check_compatible(algorithm, task)
    needs = algorithm.NEEDS
    return Resources(
        me=me,
        layout=task.layout,
        start=start,
        gradients=gradients,
        utility=ValidationScorer(task, yield_point) if Capability.VALIDATION in needs else None,
        layer_groups=task.layer_groups if Capability.LAYERS in needs else (),
    )
