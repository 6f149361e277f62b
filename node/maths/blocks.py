"""Blocks of a model's layers: what is trained at a time, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from node.config import Section
from peer.message import Layout


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive parameters of a model."""

    layout: Layout
    place: slice
    """Where they lie in the model's flat vector [d]."""

    @property
    def size(self) -> int:
        return self.layout.size


def divided(layout: Layout, stages: Sequence[Sequence[str]], each: int) -> tuple[Block, ...]:
    """The model in blocks of `each` consecutive stages (the last may be shorter), in layout order.

    Args:
        stages: names of the layout's fields, layer by layer, together all of them in order.
    """
    assert [name for stage in stages for name in stage] == [name for name, _ in layout.fields], (
        "stages ≠ layout"
    )
    shapes, found, start = dict(layout.fields), [], 0
    for k in range(0, len(stages), each):
        part = Layout(
            tuple((name, shapes[name]) for stage in stages[k : k + each] for name in stage),
            layout.dtype,
        )
        found.append(Block(part, slice(start, start + part.size)))
        start += part.size
    return tuple(found)


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


def visited(blocks: Sequence[Block], visit: int, tour: BlockSchedule) -> Block:
    """The block that is active in the visit-th visit, counted from 0: each is visited once a
    cycle.
    """
    cycle, k = divmod(visit, len(blocks))
    if tour.order == "random":
        return random.Random(f"{tour.order_seed} {cycle}").sample(blocks, len(blocks))[k]
    return blocks[k if tour.order == "ascending" else -1 - k]
