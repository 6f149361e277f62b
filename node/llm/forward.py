"""What a model of transformers is to those who call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor


class Cache(Protocol):
    """Of the keys and values of what was read."""

    def batch_repeat_interleave(self, repeats: int) -> None: ...


class Output(Protocol):
    logits: Tensor
    cache: Cache


Forward: TypeAlias = Callable[..., Output]
"""(ids [n, length], **further arguments of a transformers model) -> its output."""
