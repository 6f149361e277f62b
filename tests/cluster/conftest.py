"""Certificates of every bad kind come from the wire's tests."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "wire"))

from harness import clustered


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """`async with cluster(nodes=3, …) as c`: see `harness.clustered`."""
    return partial(clustered, tmp_path / "cluster")
