"""Chunks of examples: how many are clipped at a time. Every chunk is filled up to one length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from node import device

Backend = Literal["ghost", "vmap", "loop"]
"""How per-example gradients are computed (node/maths/backends.py)."""

CHUNK_ELEMENTS = 1 << 22
"""Elements of a chunk's gradients, 16 MiB. vmap costs about a millisecond a chunk however small the
model is, and a chunk that falls out of the cache costs more than it saves: tests/bench/gradient.py
--chunks shows both ends."""

SMALL = 1 << 14
"""Parameters up to which a chunk costs its calls, not its examples."""
LANES = 16
"""Chunks are multiples of this: kernels treat the rows of a whole block alike."""
GPU_CHUNK = 512
"""Largest chunk on a GPU, where a launch costs more than a row."""
GHOST_CHUNK = 128
"""Holds no gradients: calls against what filling up costs. Within 20 % of the best length for
batches of 64 to 500.
"""


def chunk_for(d: int, where: torch.device = device.CPU, backend: Backend = "vmap") -> int:
    """Examples per chunk for d parameters.

    A power of two from 16 to 64, CHUNK_ELEMENTS/d in between; 128 for models so small that filling
    a chunk up costs less than a second one. On a GPU what a third of its free memory holds.
    """
    if backend == "ghost":
        return GPU_CHUNK if where.type == "cuda" else GHOST_CHUNK
    if where.type == "cuda":
        return max(LANES, 1 << device.room(where, 4 * d, GPU_CHUNK).bit_length() - 1)
    if d <= SMALL:
        return 128
    return max(LANES, min(64, 1 << (CHUNK_ELEMENTS // d).bit_length() >> 1))


def chunk_length(chunk: int | None, d: int, where: torch.device, backend: Backend) -> int:
    """Examples of every chunk where `chunk` are asked for: the next multiple of LANES."""
    wanted = chunk or chunk_for(d, where, backend)
    return -(-wanted // LANES) * LANES


def pad_to_chunk(rows: Tensor, chunk: int) -> Tensor:
    """`rows` (int64 [n], 0 < n ≤ chunk) and copies of its first, int64 [chunk]; what the copies
    give is dropped.
    """
    return torch.cat([rows, rows[:1].expand(chunk - len(rows))])
