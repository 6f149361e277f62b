"""How this process keeps its memory: freed blocks of model and frame size are used again, not given back."""

from __future__ import annotations

import ctypes
import os
import sys

MiB = 1 << 20
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = {_MMAP_THRESHOLD: 32 * MiB, _TRIM_THRESHOLD: 1024 * MiB, _TOP_PAD: 64 * MiB}
"""glibc's mallopt: what is allocated by mmap of its own, what is given back at the top, what is asked for ahead. The
defaults give each megabyte back to the kernel as soon as it is free and pay page faults for the next one: a third of
the CPU time of a transfer, and of a round of a large model. 32 MiB is the most that mallopt takes."""


def keep() -> bool:
    """Sets it for this process; False where there is no glibc, or its user did (MALLOC_… in the environment)."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(key, value) == 1 for key, value in KEPT.items()])
