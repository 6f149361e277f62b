"""Freed memory is used again: a process that keeps it has few page faults where one that does not
has thousands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORK = """
import resource, sys
from node import process
if sys.argv[1] == "keep" and not process.retain_freed_memory():
    sys.exit(3)
for _ in range(20):
    blocks = [bytes(1 << 20) for _ in range(8)]
    del blocks
    if _ == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Page faults of nineteen times eight blocks of a megabyte, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", WORK, mode], capture_output=True, text=True, check=False, env=clean
    )
    if done.returncode == 3:
        pytest.skip("no glibc here: only its allocator is tuned")
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < 1_000


VECTORS = """
import resource
import node
import torch
x = torch.ones(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    x.clone()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(encoding="utf-8"),
    reason="this Linux has no huge pages, or gives them unasked",
)
def test_large_vectors_come_in_huge_pages() -> None:
    """Of 128 MiB: 32,768 small pages or 64 huge ones. Few may be missing where memory is short."""
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", VECTORS],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "THP_MEM_ALLOC_ENABLE": asked},
            ).stdout
        )
        for asked in ("1", "0")
    )
    assert few < many / 2


@pytest.mark.skipif(sys.platform != "linux", reason="another allocator")
def test_without_it_every_block_faults_anew() -> None:
    assert faults("default") > 2_000
