"""Does an algorithm suit a task, and is there memory for both?"""

from __future__ import annotations

from typing import Any

import torch

from node.algorithms import Algorithm
from node.config import PrivacySection, RunConfig
from node.maths.blocks import partition_blocks
from node.maths.clipping import chunk_for
from node.process import available_memory, mib
from node.task import Task
from peer.errors import ConfigurationError

BASE = 460 << 20
"""Bytes of a daemon with next to no parameters."""
OWN, PER_EXAMPLE, PER_NEIGHBOR = 28, 3, 6
"""Parameter vectors that are held at once: of a round, gradients of an example in float32 and
float64, and what is in flight to and from a neighbor. Fitted to peaks of DPDL's daemons
(docs/benchmarks.md): without privacy they take 6 to 19 % less than said, in mode strict up to 9 %
more."""


def check_compatible(algorithm: type[Algorithm], task: Task) -> None:
    """Raises ConfigurationError: the task has no layers to train one after another, or no
    adapters.
    """
    if getattr(algorithm, "staged", False) and not getattr(task, "stages", ()):
        raise ConfigurationError(
            "The task names no layers (stages), so they can't be trained block by block."
        )
    if getattr(algorithm, "adapted", False) and not getattr(task, "adapted", False):
        raise ConfigurationError(
            'dec-lora averages adapters; set task.text.lora_rank (task.name = "causal-lm"), or take dsgd-adam.'
        )


def room_for_blocks(
    algorithm: type[Algorithm], options: Any, run: RunConfig, task: Task, degree: int
) -> None:
    """Raises ConfigurationError: the largest block of a block-wise algorithm does not fit beside
    the model.
    """
    if not getattr(algorithm, "staged", False):
        return
    need, free = _beside(options, run, task, degree), available_memory()
    if free is not None and need > free:
        raise ConfigurationError(
            f"algorithm.layers_per_block = {options.layers_per_block} makes blocks that take {mib(need)} beside the "
            f"model, but {mib(free)} are available; lower it, or take a machine with more memory."
        )


def largest(options: Any, task: Task) -> int:
    """Parameters of the largest block."""
    groups = task.stages  # type: ignore[attr-defined]
    return max(
        block.size for block in partition_blocks(task.layout, groups, options.layers_per_block)
    )


def memory_needed(
    algorithm: type[Algorithm], options: Any, run: RunConfig, task: Task, degree: int
) -> int:
    """About how many bytes a daemon takes, without activations: block by block M + 10M/B, or what
    the options make of it, and 2M to start with."""
    d, privacy = task.layout.size, run.privacy
    if not getattr(algorithm, "staged", False):
        return BASE + 4 * d * (
            OWN + PER_EXAMPLE * _at_once(privacy, task, d) + PER_NEIGHBOR * degree
        )
    block, width = largest(options, task), getattr(task, "dtype", torch.float32).itemsize
    clipped = PER_EXAMPLE * _at_once(privacy, task, block) if privacy.mode != "none" else 0
    return (
        BASE + width * d + max(width * d, _beside(options, run, task, degree) + 4 * block * clipped)
    )


def _beside(options: Any, run: RunConfig, task: Task, degree: int) -> int:
    """Bytes of the largest block's vectors, beside the model."""
    return int(4 * largest(options, task) * (options.vectors + _collected(options, run, degree)))


def _collected(options: Any, run: RunConfig, degree: int) -> float:
    """Blocks that are held where those of neighbors are not folded as they come: these, what came
    in bfloat16 beside it in float32, and tables of all."""
    wire = getattr(options, "wire", None)  # BAdam has none
    if wire is None or (run.mix.rule == "mean" and run.sync.mode != "quorum"):
        return 0
    table = 1 + degree if run.mix.rule in ("median", "trimmed_mean") else 0
    return degree + table + (1 + degree / 2 if wire == "bf16-delta" else 0)


def _at_once(privacy: PrivacySection, task: Task, d: int) -> int:
    """Gradients of d parameters that are held at a time: a chunk of single examples where they are
    clipped and can't be had as factors."""
    factors = getattr(task, "factors", lambda: None)()
    if privacy.mode == "none" or (factors is not None and privacy.backend in ("auto", "ghost")):
        return 1
    return privacy.chunk or chunk_for(d)
