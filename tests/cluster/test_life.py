"""One daemon's life, from process to process: watched, told to stop, back from its checkpoint, told
twice, and with a ledger that somebody rolled back. The other three of its ring live in the test's
process; n3, opposite, sets the pace.
"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.clusters import Cluster, Process, Witness, debits, events, faults, get, health, until
from peer.v1 import peer_pb2 as pb

DEADLINE = 40.0
"""Seconds; far longer than anything here may take that must not take a deadline."""


@pytest.mark.cluster
async def test_a_life(cluster: Any, tmp_path: Path) -> None:
    async with cluster(nodes=4, rounds=60, kind="ring", sync={"deadline_s": DEADLINE}) as c:
        around, pace = [c.witness("n0"), c.witness("n2")], c.witness("n3", limit=2)
        home = c.homes["n1"]
        n1 = c.start("n1")
        await mid_round(n1, pace)
        await watched(c, n1)
        await no_second_daemon_on_its_ledger(tmp_path, home)
        await stopped(n1, around, pace)
        shutil.copytree(home / "ledger", tmp_path / "snapshot")
        before = debits(home)

        n1 = c.start("n1")
        await back(n1, around, pace)
        assert resumed(n1) == {"checkpoint": 2, "round": 1 + max(t for t, _ in before)}
        sequence = max(before.values())  # neighbors are told once a second, in beats
        await until(lambda: all(it.remembers("n1") > sequence for it in around))
        await told_twice(n1, around)
        after = debits(home)
        assert before.items() < after.items()
        assert faults("n1", around, after) == []

        shutil.rmtree(home / "ledger")
        shutil.copytree(tmp_path / "snapshot", home / "ledger")
        n1 = c.start("n1")
        await back(n1, around, pace)
        await releases_nothing(n1, around)
        assert debits(home) == before


async def mid_round(process: Process, pace: Witness) -> None:
    """The opposite node holds its neighbors' next round, and so this node's."""
    await process.until(lambda: pace.held and process.reached(pace.limit))
    waits = await process.until(lambda: (it := process.status()) and it["waiting_for"] and it)
    assert waits["round"] == pace.limit + 1
    assert {it["peer"] for it in waits["waiting_for"]} <= {"n0", "n2"}
    assert all(0 < it["until_s"] <= DEADLINE for it in waits["waiting_for"])


async def watched(c: Cluster, process: Process) -> None:
    """Metrics, readiness and health of a live daemon."""
    seen = process.status()
    assert seen is not None
    values = {}
    for family in text_string_to_metric_families(get(f"http://{seen['metrics']}/metrics")):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name == "peerpoise_privacy_epsilon_spent":
                assert (labels.pop("mode"), labels.pop("accountant")) == ("strict", "RDP")
                assert labels.pop("adjacency") == "add/remove one example"
            values[(sample.name, *labels.values())] = sample.value
    assert values["peerpoise_rounds_total",] == 3
    assert values["peerpoise_round",] in (2, 3)
    for peer in ("n0", "n2"):
        assert values["peerpoise_mixing_weight_ratio", peer] == pytest.approx(1 / 3)
        assert values["peerpoise_peer_up", peer] == 1
    for recipient in ("n0", "n1", "n2"):
        assert values["peerpoise_releases_total", recipient] >= 3
    assert (
        0
        < values["peerpoise_privacy_epsilon_spent", "total"]
        <= values["peerpoise_privacy_epsilon_spent", "lifetime"]
    )
    assert values["peerpoise_tls_enabled",] == 1
    assert values["peerpoise_insecure", "transport"] == 0
    assert not any(name.startswith("peerpoise_") and "n3" in labels for name, *labels in values), (
        "no neighbor"
    )
    assert get(f"http://{seen['metrics']}/-/ready").startswith("200")
    assert await health(c, "n1", asker="n0") == "SERVING"


async def no_second_daemon_on_its_ledger(folder: Path, home: Path) -> None:
    """Of another run, on the same data."""
    other = Cluster.make(folder / "other", nodes=2)
    try:
        second = other.start("n0", "--set", f"budget.ledger_dir={home / 'ledger'}")
        assert await second.ended() == 75
        assert second.log.startswith("peerpoise: Another process uses the ledger digits ")
        assert second.log.count("\n") == 1
    finally:
        await other.end()


async def stopped(process: Process, around: list[Witness], pace: Witness) -> None:
    """SIGTERM in mid-round: exit 0 in six seconds, and the neighbors go on at once."""
    process.popen.terminate()
    assert await process.ended(6.0) == 0
    last = process.events()[-1]
    assert (last["event"], last["reason"], last["signal"]) == ("end", "stopped", "SIGTERM")
    await until(lambda: all(it.knows("n1") == "left" for it in around), 5.0)
    began = time.monotonic()
    pace.limit += 4
    await until(lambda: pace.held, what=lambda: [it.round for it in around])
    assert time.monotonic() - began < DEADLINE / 2, "nobody waits for who has left"
    reasons = {event["reason"] for it in around for event in lost(it)}
    assert not any("progress" in reason or "waited" in reason for reason in reasons), reasons


def lost(witness: Witness) -> list[Any]:
    return events(witness.node.folder, "lost_edge")


async def back(process: Process, around: list[Witness], pace: Witness) -> None:
    """The node agrees on its edges with neighbors that the pace-maker holds; then all play a few
    rounds more.
    """
    await process.until(lambda: all("n1" in it.session.table.membership.agreed() for it in around))
    await process.state("running")
    pace.limit += 6
    await process.until(lambda: pace.held and process.reached(pace.limit))


def resumed(process: Process) -> dict[str, Any]:
    """Where the present process began."""
    event = [event for event in process.events("header", "resume") if not event.get("skipped")][-1]
    return {key: event[key] for key in ("checkpoint", "round")}


async def told_twice(process: Process, around: list[Witness]) -> None:
    """The neighbors let the goodbye wait; the second SIGTERM does not."""
    for witness in around:
        witness.leave_late.clear()
    process.popen.terminate()
    await until(lambda: process.events("state")[-1]["state"] == "stopping", 5.0)
    process.popen.terminate()
    assert await process.ended(2.0) == 128 + signal.SIGTERM
    for witness in around:
        witness.leave_late.set()


async def releases_nothing(process: Process, around: list[Witness]) -> None:
    """The neighbors remember what the ledger's files have forgotten: every answer is withheld, and
    status says why.
    """
    seen = process.status()
    assert seen is not None
    [said] = [text for text in seen["warnings"] if "ledger" in text]
    assert said.startswith(
        "A neighbor remembers more debits of the ledger digits than its files hold."
    )
    for witness in around:
        newest = max(it.incarnation for it in witness.transfers if it.sender == "n1")
        answers = [
            it for it in witness.transfers if it.incarnation == newest and it.role == pb.ROLE_ANSWER
        ]
        assert answers
        assert all(it.withheld and not it.payload for it in answers)
    metrics = get(f"http://{seen['metrics']}/metrics")
    assert "peerpoise_privacy_ledger_errors_total 0.0" not in metrics
    assert "peerpoise_releases_withheld_total 0.0" not in metrics
