"""The first seconds of a daemon: its port answers before torch is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import health
from node.experiments.federation import remove_members

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
    """(exists when torch is asked for, make it to let torch be imported): for daemons that are
    started now.
    """
    asked, go = tmp_path / "asked", tmp_path / "go"
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(asked=str(asked), go=str(go)))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    return asked, go


@pytest.mark.cluster
async def test_health_is_served_before_torch(cluster: Any, held: tuple[Path, Path]) -> None:
    """NOT_SERVING while torch is held up, SERVING while rounds are played."""
    asked, go = held
    async with cluster(nodes=2) as c:
        n0 = c.start("n0", fresh=True)
        assert await health(c, "n0", asker="n1", wait=True) == "NOT_SERVING"
        await n0.until(asked.exists)
        assert await health(c, "n0", asker="n1") == "NOT_SERVING"
        go.touch()
        c.witness("n1", limit=0)
        await n0.state("running")
        assert await health(c, "n0", asker="n1") == "SERVING"


@pytest.mark.cluster
async def test_a_roster_that_is_replaced_meanwhile_is_read_and_an_older_one_refused(
    cluster: Any, held: tuple[Path, Path]
) -> None:
    """`systemctl reload` in the first seconds ends nobody; what it was meant to bring is read when
    torch is there.
    """
    asked, go = held
    async with cluster(nodes=2) as c:
        older = (c.homes["n0"] / "roster.json").read_bytes()
        n0 = c.start("n0", fresh=True)
        await n0.until(asked.exists)
        remove_members(c.folder, ["n1"], c.folder / "federation")
        (c.homes["n0"] / "roster.json").write_bytes((c.folder / "roster.json").read_bytes())
        n0.popen.send_signal(signal.SIGHUP)
        go.touch()
        await n0.until(
            lambda: (
                (seen := n0.status()) and [it["state"] for it in seen["neighbors"]] == ["removed"]
            )
        )
        n0.kill()
        (c.homes["n0"] / "roster.json").write_bytes(older)
        again = c.start("n0")
        assert await again.ended() == 77
        assert "The roster is of version 1, and 2 was in force here; copy that one." in again.log
