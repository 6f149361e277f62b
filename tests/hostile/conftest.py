"""What hostile members are tried on: the conformance tests' meshes, and the cluster tests' daemons."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

for kit in ("conformance", "cluster", "wire"):
    sys.path.append(str(Path(__file__).parents[1] / kit))

from harness import Cluster  # noqa: E402


@pytest.fixture
def daemons(tmp_path: Path) -> Any:
    """`async with daemons(nodes=3, …) as c`: everything it started is gone afterwards, whatever happened."""

    @asynccontextmanager
    async def make(**settings: Any) -> AsyncIterator[Cluster]:
        made = Cluster.make(tmp_path / "cluster", **settings)
        try:
            yield made
        finally:
            await made.end()

    return make
