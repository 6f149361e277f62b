"""What a call of the command line gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Call: TypeAlias = Callable[..., Result]
