"""This process: its memory, who may read it, and which signals stop it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

MiB = 1 << 20
PR_SET_DUMPABLE = 4
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = {_MMAP_THRESHOLD: 32 * MiB, _TRIM_THRESHOLD: 1024 * MiB, _TOP_PAD: 64 * MiB}
"""glibc's mallopt: what is allocated by mmap of its own, what is given back at the top, what is
asked for ahead. The defaults give each megabyte back to the kernel as soon as it is free and pay
page faults for the next one: a third of the CPU time of a transfer, and of a round of a large
model. 32 MiB is the most that mallopt takes."""


def retain_freed_memory() -> bool:
    """Freed blocks of model and frame size are used again by this process, not given back.

    False where there is no glibc, or its user set this (MALLOC_… in the environment)."""
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(key, value) == 1 for key, value in KEPT.items()])  # noqa: C419 (all are set)


def hide() -> None:
    """Keeps this process's memory, with keys and noise in it, out of files and of the reach of
    other processes of this user. Best effort where there is no prctl.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):  # core_pattern may be a program, which no limit stops
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def available_memory() -> int | None:
    """Bytes that could be used now, within this process's cgroup; None where the system does not
    say.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = dict(line.split(":") for line in lines)["MemAvailable"].split()[0]
    free = 1024 * int(kib)
    try:
        most, used = _cgroup("max"), _cgroup("current")
    except OSError:
        return free
    return free if most == "max" else min(free, int(most) - int(used))


def _cgroup(name: str) -> str:
    return Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8").strip()


def mib(size: int) -> str:
    """A number of bytes in MiB, for people."""
    return f"{size / MiB:,.0f} MiB"


def stopping_signals() -> list[signal.Signals]:
    """What tells a program to stop in order: SIGTERM, SIGINT, and SIGHUP unless it is ignored, as
    under nohup.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]
