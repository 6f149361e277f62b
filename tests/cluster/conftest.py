"""Certificates of every bad kind come from the wire's tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "wire"))

from harness import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """`async with cluster(nodes=3, …) as c`: everything it started is gone afterwards, whatever happened."""

    @asynccontextmanager
    async def make(**settings: Any) -> AsyncIterator[Cluster]:
        made = Cluster.make(tmp_path / "cluster", **settings)
        try:
            yield made
        finally:
            await made.end()

    return make
