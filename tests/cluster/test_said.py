"""What daemons say while one of them dies, comes back, and is stopped."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@pytest.mark.cluster
async def test_a_neighbor_that_dies_and_comes_back(cluster: Any) -> None:
    async with cluster(nodes=3, rounds=100_000, sync={"deadline_s": 2.0}) as c:
        n0, n1, n2 = (c.start(name) for name in ("n0", "n1", "n2"))
        await n0.until(lambda: "starts round 1 of 100000 with n1 and n2" in n0.log)
        await n2.until(lambda: n2.reached(2))
        n2.kill()
        await n0.until(lambda: "n2 is gone: " in n0.log and "n2 is gone: " in n1.log)
        again = c.start("n2", "--log", "json")
        await n0.until(lambda: "n2 is back" in n0.log)
        await again.state("running")
        n0.popen.send_signal(signal.SIGTERM)
        assert await n0.ended() == 0
        await n1.until(lambda: "n0 is gone: It left." in n1.log)

        lines = n0.log.splitlines()
        assert all(LINE.match(line) for line in lines), "one line an event, with its time"
        assert lines[-2].endswith("stops: SIGTERM")
        assert lines[-1].endswith("stopped; type the same command to go on")
        lines = [json.loads(line) for line in again.log.splitlines()]
        assert {line["node"] for line in lines} == {"n2"}
        opening = next(line["text"] for line in lines if line["event"] == "listening")
        assert "; goes on at round " in opening
