"""Is there memory for an algorithm on a task?"""

from __future__ import annotations

from node.config import AlgorithmConfig, PrivacySection, RunConfig
from node.maths.blocks import BlockSchedule, partition_blocks
from node.maths.chunks import chunk_for
from node.process import available_memory, mib
from node.task import Task
from peer.errors import ConfigurationError
from peer.message import DType

BASE = 460 << 20
"""Bytes of a daemon with next to no parameters."""
OWN, PER_EXAMPLE, PER_NEIGHBOR = 28, 3, 6
"""Parameter vectors that are held at once: of a round, gradients of an example in float32 and
float64, and what is in flight to and from a neighbor. Fitted to peaks of DPDL's daemons
(docs/benchmarks.md): without privacy they take 6 to 19 % less than said, in mode strict up to 9 %
more."""


def room_for_blocks(options: AlgorithmConfig, run: RunConfig, task: Task, degree: int) -> None:
    """Raises ConfigurationError: the largest block of a block-wise algorithm does not fit beside
    the model.
    """
    if not isinstance(options, BlockSchedule):
        return
    need, free = _beside(options, run, task, degree), available_memory()
    if free is not None and need > free:
        raise ConfigurationError(
            f"algorithm.layers_per_block = {options.layers_per_block} makes blocks that take "
            f"{mib(need)} beside the model, but {mib(free)} are available; lower it, or take a "
            "machine with more memory."
        )


def largest(options: BlockSchedule, task: Task) -> int:
    """Parameters of the largest block."""
    blocks = partition_blocks(task.layout, task.layer_groups, options.layers_per_block)
    return max(block.size for block in blocks)


def memory_needed(options: AlgorithmConfig, run: RunConfig, task: Task, degree: int) -> int:
    """About how many bytes a daemon takes, without activations: block by block M + 10M/B, or what
    the options make of it, and 2M to start with.
    """
    d, privacy = task.layout.size, run.privacy
    if not isinstance(options, BlockSchedule):
        held = PER_EXAMPLE * _gradients_at_once(privacy, task, d)
        return BASE + 4 * d * (OWN + held + PER_NEIGHBOR * degree)
    block, width = largest(options, task), task.dtype.itemsize
    private = privacy.mode != "none"
    clipped = PER_EXAMPLE * _gradients_at_once(privacy, task, block) if private else 0
    training = _beside(options, run, task, degree) + 4 * block * clipped
    return BASE + width * d + max(width * d, training)


def _beside(options: BlockSchedule, run: RunConfig, task: Task, degree: int) -> int:
    """Bytes of the largest block's vectors, beside the model."""
    return int(4 * largest(options, task) * (options.vectors + _collected(options, run, degree)))


def _collected(options: BlockSchedule, run: RunConfig, degree: int) -> float:
    """Blocks kept in memory when streaming is off: one per neighbor, their bfloat16 originals, and
    the stacked table that a robust rule needs.
    """
    streamed = run.mix.rule == "mean" and run.sync.mode != "quorum"
    if options.sends is None or streamed:
        return 0
    table = 1 + degree if run.mix.rule in ("median", "trimmed_mean") else 0
    originals = 1 + degree / 2 if options.sends is DType.BFLOAT16 else 0
    return degree + table + originals


def _gradients_at_once(privacy: PrivacySection, task: Task, d: int) -> int:
    """Gradients of d parameters that are held at a time: a chunk of single examples where they are
    clipped and can't be had as factors."""
    factors = task.factors()
    if privacy.mode == "none" or (factors is not None and privacy.backend in ("auto", "ghost")):
        return 1
    return privacy.chunk or chunk_for(d)
