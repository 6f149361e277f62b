"""Blocks of a model's layers: what is trained at a time, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from node.config import Section
from peer.message import DType, Layout


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive parameters of a model."""

    layout: Layout
    span: slice
    """Where they lie in the model's flat vector [d]."""

    @property
    def size(self) -> int:
        return self.layout.size


def partition_blocks(
    layout: Layout, layer_groups: Sequence[Sequence[str]], groups_per_block: int
) -> tuple[Block, ...]:
    """The model in blocks of so many consecutive layers (the last may have fewer), in layout order.

    Args:
        layer_groups: names of the layout's fields, layer by layer, together all of them in order.
    """
    assert [name for group in layer_groups for name in group] == [
        name for name, _ in layout.fields
    ], "layer groups ≠ layout"
    shapes = dict(layout.fields)
    blocks: list[Block] = []
    start = 0
    for k in range(0, len(layer_groups), groups_per_block):
        names = [name for group in layer_groups[k : k + groups_per_block] for name in group]
        part = Layout(tuple((name, shapes[name]) for name in names), layout.dtype)
        blocks.append(Block(part, slice(start, start + part.size)))
        start += part.size
    return tuple(blocks)


class BlockSchedule(Section):
    """The part of an algorithm's Config that says which block is active."""

    layers_per_block: int = Field(default=2, ge=1)
    """Consecutive transformer layers (of other models: modules with parameters) that make up a
    block.
    """
    steps: int = Field(default=48, ge=1)
    """R: inner steps, which are rounds, in every visit of a block."""
    order: Literal["ascending", "descending", "random"] = "descending"
    """Of the blocks: descending begins at the output; random is another order in every cycle."""
    order_seed: int = 0
    """random: the same at all nodes, so that they agree without a message."""

    @property
    def vectors(self) -> float:
        """How many vectors of the active block's size, in float32, are held beside the model."""
        return 5

    @property
    def sends(self) -> DType | None:
        """What the active block is sent in; None: it is not sent."""
        return None


def active_block(blocks: Sequence[Block], visit: int, schedule: BlockSchedule) -> Block:
    """The block of the visit-th visit, counted from 0: each is visited once a cycle."""
    cycle, k = divmod(visit, len(blocks))
    if schedule.order == "random":
        order = random.Random(f"{schedule.order_seed} {cycle}").sample(blocks, len(blocks))
        return order[k]
    return blocks[k if schedule.order == "ascending" else -1 - k]
