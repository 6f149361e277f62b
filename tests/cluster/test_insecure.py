"""Without TLS a daemon says so, wherever one looks; and it never falls back to that by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.clusters import get


@pytest.mark.cluster
async def test_insecure_is_shown_everywhere(cluster: Any) -> None:
    async with cluster(nodes=2, rounds=2, privacy={"mode": "none", "sigma": None}) as c:
        witness = c.witness("n1", limit=0, insecure=True)
        n0 = c.start("n0", "--insecure")
        seen = await n0.state("running")
        assert seen["insecure"] == ["transport"]
        assert any("There is no TLS" in text for text in seen["warnings"])
        metrics = get(f"http://{seen['metrics']}/metrics")
        assert 'peerpoise_insecure{what="transport"} 1.0' in metrics
        assert "peerpoise_tls_enabled 0.0" in metrics
        witness.limit = 9
        assert await n0.ended() == 0
        assert await witness.task == 0
        assert "There is no TLS" in n0.log
        assert any("There is no TLS" in event["text"] for event in n0.events("warning"))
        assert json.loads((c.homes["n0"] / "summary.json").read_text())["insecure"] is True


@pytest.mark.cluster
async def test_with_and_without_tls_do_not_meet(cluster: Any) -> None:
    """A secure daemon and an insecure one have nothing to say to each other, whoever dials."""
    async with cluster(nodes=2, rounds=2) as c:
        c.witness("n1", insecure=True)
        n0 = c.start("n0")
        await n0.until(
            lambda: (it := n0.status()) and it["neighbors"] and it["neighbors"][0]["last_error"]
        )
        seen = n0.status()
        assert seen is not None
        assert (seen["state"], seen["insecure"]) == ("waiting for peers", [])
        assert seen["neighbors"][0]["state"] == "unknown"
        n0.popen.terminate()
        assert await n0.ended(6.0) == 0
