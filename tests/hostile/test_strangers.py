"""Whoever can reach a port, without any certificate: it holds a bounded number of places there, and
stops nothing.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

from kit import TESTS, script
from kit.attacked_cluster import attack, cluster, state_of
from kit.clusters import Process, get
from node.daemon.telemetry import WARNINGS
from peer.errors import Unreachable
from peer.identity.authority import CertificateAuthority
from peer.transport.grpc import Grpc
from peer.transport.grpc import options as wire

DESCRIPTORS = 1024
"""What many systems give a process."""
STRANGERS = "1000"
HEARD_SECONDS = 60.0
"""A neighbor gets in among three times as many strangers as there are places within one or two
cut-offs, on a busy machine within some more, and without cut-offs never.
"""


@pytest.mark.cluster
async def test_1000_silent_connections_stop_no_release(tmp_path: Path) -> None:
    few = few_descriptors(DESCRIPTORS)
    async with cluster(tmp_path, nodes=2, rounds=100_000, train={"checkpoint_every": 5}) as c:
        n0, n1 = c.start("n0", inside=few), c.start("n1")
        await n0.until(lambda: n0.reached(5))
        async with attack("stranger", c.addresses["n0"], STRANGERS):
            await n0.until(lambda: descriptors(n0) > DESCRIPTORS // 5)
            before = n0.events("round")[-1]["round"]
            await n0.until(lambda: n0.reached(before + 100))
            assert descriptors(n0) < DESCRIPTORS // 2
            assert state_of(n0, "n1") == "live", "status answers"
            assert 'peerpoise_connections_total{used="no"}' in get(f"http://{n0.metrics}/metrics")
        assert not n0.events("withheld", "lost_edge")
        assert not [
            it
            for it in n0.events("warning")
            if "descriptor" in it["text"] or "open files" in it["text"]
        ]
        assert n0.events("checkpoint")[-1]["round"] >= before + 90
        now = n0.status()
        assert now is not None
        assert len(now["warnings"]) < WARNINGS // 4
        assert n1.code is None


def few_descriptors(number: int) -> tuple[str, ...]:
    """Starts the command that follows with so many."""
    return ("sh", "-c", f'ulimit -n {number}; exec "$@"', "sh")


def descriptors(process: Process) -> int:
    """How many it has open."""
    return len(os.listdir(f"/proc/{process.popen.pid}/fd"))


@pytest.mark.cluster
async def test_a_neighbor_gets_in_among_strangers(tmp_path: Path) -> None:
    """Places come free as strangers are cut; who tries about once a second finds one."""
    ca = CertificateAuthority.create(tmp_path / "ca")
    alice, bob = ca.enrol(tmp_path / "alice"), ca.enrol(tmp_path / "bob")
    listener = await asyncio.create_subprocess_exec(
        *script("reconnect_storm", "listen", str(tmp_path / "alice")),
        cwd=TESTS,
        stdout=subprocess.PIPE,
    )
    try:
        assert listener.stdout is not None
        address = (await listener.stdout.readline()).decode().strip()
        async with attack("stranger", address, str(3 * wire.CONNECTIONS)):
            took = [await heard(bob, alice.id, address) for _ in range(3)]
        assert max(took) < HEARD_SECONDS
    finally:
        listener.kill()
        await listener.wait()


async def heard(own: object, node_id: str, address: str) -> float:
    """Seconds until a new link's call is answered."""
    began = time.monotonic()
    link = Grpc(own, "127.0.0.1:0").link(node_id, address)  # type: ignore[arg-type]
    while True:
        try:
            await link.call("Beat", b"hello", 5.0)
        except Unreachable:
            continue
        await link.close()
        return time.monotonic() - began
