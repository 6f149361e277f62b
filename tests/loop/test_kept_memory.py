"""Freed memory is used again: a process that keeps it has few page faults where one that does not
has thousands.
"""

from __future__ import annotations

import os
import subprocess
import sys

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


@pytest.mark.skipif(sys.platform != "linux", reason="another allocator")
def test_without_it_every_block_faults_anew() -> None:
    assert faults("default") > 2_000
