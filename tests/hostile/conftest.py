"""What hostile members are tried on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import clustered


@pytest.fixture
def daemons(tmp_path: Path) -> Any:
    """`async with daemons(nodes=3, …) as c`: see `kit.clusters.clustered`."""
    return partial(clustered, tmp_path / "cluster")
