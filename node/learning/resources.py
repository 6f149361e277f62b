"""What a task offers, compared with what an algorithm needs, and given to it."""

from __future__ import annotations

from torch import Tensor

from node.algorithms import Algorithm, Capability, Gradients, Resources
from node.maths.policy import Draws
from node.task import Task
from node.tasks.rewarded import RewardedTask
from node.tasks.validation import ValidationScorer
from peer.errors import ConfigurationError

REFUSALS = {
    Capability.VALIDATION: "The algorithm values what it hears on a validation set, and there is "
    "none: set validation.size, or with own data validation.path before pack (data.validation in a "
    "node's file).",
    Capability.LAYERS: "The task names no layers (layer_groups), so they can't be trained block by "
    "block.",
    Capability.POLICY: "The algorithm learns from rewarded answers, and the task asks no "
    'questions: set task.name = "reasoning".',
    Capability.ADAPTERS: "dec-lora averages adapters; set task.text.lora_rank (task.name = "
    '"causal-lm"), or take dsgd-adam.',
}


def capabilities(task: Task) -> frozenset[Capability]:
    """What algorithms may ask of the task."""
    offered = {
        Capability.VALIDATION: task.validation is not None,
        Capability.LAYERS: bool(task.layer_groups),
        Capability.ADAPTERS: task.adapted,
        Capability.POLICY: isinstance(task, RewardedTask),
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
    start: Tensor,
    gradients: Gradients,
    draws: Draws,
) -> Resources:
    """What one node's algorithm is made with.

    Raises:
        ConfigurationError: the algorithm needs what the task does not have.
    """
    check_compatible(algorithm, task)
    needs = algorithm.NEEDS
    return Resources(
        me=draws.me,
        layout=task.layout,
        start=start,
        gradients=gradients,
        utility=ValidationScorer(task, draws.yield_point)
        if Capability.VALIDATION in needs
        else None,
        layer_groups=task.layer_groups,
        policy=(
            task.policy(draws)
            if Capability.POLICY in needs and isinstance(task, RewardedTask)
            else None
        ),
    )
