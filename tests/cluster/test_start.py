"""The first seconds of a daemon: its port answers before torch is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness import health

SECONDS = 3.0
"""From a daemon's start until its health service has answered (here 0.6)."""
HOLD = """
import sys, time
from importlib.abc import MetaPathFinder
from pathlib import Path

class Hold(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            Path({asked!r}).touch()
            while not Path({go!r}).exists():
                time.sleep(0.02)
        return None

sys.meta_path.insert(0, Hold())
"""
"""A sitecustomize.py: whoever imports torch waits for a file."""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(exists when torch is asked for, make it to let torch be imported): for daemons that are started now."""
    asked, go = tmp_path / "asked", tmp_path / "go"
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(asked=str(asked), go=str(go)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return asked, go


@pytest.mark.cluster
async def test_health_is_served_before_torch(cluster: Any, held: tuple[Path, Path]) -> None:
    """NOT_SERVING while torch loads, SERVING while rounds are played."""
    asked, go = held
    async with cluster(nodes=2) as c:
        began = time.monotonic()
        n0 = c.start("n0", fresh=True)
        assert await health(c, "n0", asker="n1", wait=True) == "NOT_SERVING"
        assert time.monotonic() - began < SECONDS
        await n0.until(asked.exists)
        assert await health(c, "n0", asker="n1") == "NOT_SERVING"
        go.touch()
        c.witness("n1", limit=0)
        await n0.state("running")
        assert await health(c, "n0", asker="n1") == "SERVING"
