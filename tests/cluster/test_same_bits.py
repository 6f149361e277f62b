"""The same bits, whatever carries them: `simulate` against daemons, each a process of its own, on
either event loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import experiment
from kit.same_bits import SETTINGS
from node.experiments.in_process import simulate

CLUSTERS = [
    ("strict", "ring", 4, "uvloop"),
    ("paper", "full", 3, "asyncio"),
    pytest.param("strict", "full", 3, "asyncio", marks=pytest.mark.long),
    pytest.param("d-psgd", "ring", 4, "asyncio", marks=pytest.mark.long),
    pytest.param("ross", "ring", 4, "uvloop", marks=pytest.mark.long),
]
"""Three nodes in a ring know each other all, so a ring is one of four."""


@pytest.mark.cluster
@pytest.mark.parametrize(("what", "kind", "nodes", "loop"), CLUSTERS)
async def test_daemons_give_the_bits_of_simulate(
    cluster: Any, tmp_path: Path, what: str, kind: str, nodes: int, loop: str
) -> None:
    settings = {"kind": kind, "nodes": nodes, **SETTINGS[what]}
    async with cluster(**settings) as c:
        processes = {name: c.start(name, loop=loop) for name in c.homes}
        for process in processes.values():
            seen = await process.until(process.status)
            assert seen["loop"] == loop
        simulated = simulate(experiment(**settings), tmp_path / "simulated")
        expected = simulated.params_digest
        assert len(set(expected.values())) == (1 if kind == "full" else nodes), (
            "a full graph mixes to one model"
        )
        for name, process in processes.items():
            assert await process.ended() == 0, process.log
            found = json.loads((c.homes[name] / "summary.json").read_text())
            assert found["params_digest"] == {name: expected[name]}
            assert found["complete"]
            assert found["bytes_sent"]["mean"] == simulated.bytes_sent.mean, (
                "all send equally much here"
            )
            assert process.events("lost_edge", "partial_mix") == []
