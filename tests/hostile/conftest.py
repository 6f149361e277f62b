"""What hostile members are tried on: the conformance tests' meshes, and the cluster tests'
daemons.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

for kit in ("conformance", "cluster", "wire"):
    sys.path.append(str(Path(__file__).parents[1] / kit))

from harness import clustered  # noqa: E402


@pytest.fixture
def daemons(tmp_path: Path) -> Any:
    """`async with daemons(nodes=3, …) as c`: see `harness.clustered`."""
    return partial(clustered, tmp_path / "cluster")
