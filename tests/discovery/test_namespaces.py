"""Five real daemons on hosts of their own find each other by one discovery alone, and play a short
run to its end.

The hosts are network namespaces (`hosts.py`). Folders come from `peerpoise pack`, as they would for
real hosts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Process, experiment
from kit.network_namespaces import NETWORK, Host, switch, why_not
from node.config import RunConfig, load
from node.experiments.hosts import pack
from peer.discovery.pex import FILE
from peer.v1 import peer_pb2 as pb

ROUNDS = 3
SECONDS = 200.0
"""For all of a run: five daemons that import torch at once take tens of seconds where others work,
too.
"""
NODES = ("n0", "n1", "n2", "n3", "n4")
reason = why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(500),
    pytest.mark.skipif(bool(reason), reason=reason or "can be run"),
]


class Daemons(dict[str, Process]):
    """name -> process."""

    async def finish(self) -> None:
        assert await asyncio.gather(*(it.ended(SECONDS) for it in self.values())) == [0] * len(self)
        for it in self.values():
            summary = json.loads((it.home / "state" / "summary.json").read_text())
            assert (summary["rounds"], summary["complete"]) == (ROUNDS, True)
            assert not it.events("lost_edge")


@contextlib.asynccontextmanager
async def daemons(
    folder: Path,
    hosts: list[Host],
    given: list[str],
    discovery: list[str],
    hosts_file: Path | None = None,
) -> AsyncIterator[Daemons]:
    """A daemon per host, in a ring, from folders that `pack` made."""
    config = experiment(nodes=len(NODES), rounds=ROUNDS, kind="ring", start={"timeout_s": SECONDS})
    pack(config, given, [], folder, discovery)
    started = Daemons()
    try:
        for name, host in zip(NODES, hosts, strict=True):
            run = load(RunConfig, [folder / name / "run.toml"], environ={})
            started[name] = Process.start(
                folder / name, run, inside=host.inside(hosts_file=hosts_file)
            )
        yield started
    finally:
        for process in started.values():
            process.kill()


async def test_by_mdns_alone(tmp_path: Path) -> None:
    with switch(len(NODES)) as hosts:
        async with daemons(tmp_path / "packed", hosts, [*NODES], ["mdns"]) as started:
            assert not any(member["addresses"] for member in roster(tmp_path / "packed"))
            await started.finish()
    assert nothing_left()


@pytest.mark.long
async def test_by_one_address_and_peer_exchange(tmp_path: Path) -> None:
    """n0's address is known, by a host name. In the ring n2 and n3 are no neighbors of it, and
    learn from it, too.
    """
    names = tmp_path / "hosts"
    names.write_text(f"127.0.0.1 localhost\n{NETWORK}.1 first.test\n")
    with switch(len(NODES)) as hosts:
        given = ["n0=first.test:7443", *NODES[1:]]
        async with daemons(tmp_path / "packed", hosts, given, ["exchange"], names) as started:
            assert [it["addresses"] for it in roster(tmp_path / "packed")] == [
                ["first.test:7443"],
                [],
                [],
                [],
                [],
            ]
            await started.finish()
            for i, name in enumerate(NODES):
                neighbors = {NODES[i - 1], NODES[(i + 1) % len(NODES)]} - {"n0"}
                assert neighbors <= book(tmp_path / "packed" / name)
    assert nothing_left()


def book(home: Path) -> set[str]:
    """Whose announcements a node has learned and kept."""
    names = {member["id"]: member["name"] for member in roster(home)}
    said = json.loads((home / "state" / FILE).read_text())["announcements"]
    return {names[pb.Announcement.FromString(base64.b64decode(each)).member] for each in said}


def roster(folder: Path) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads((folder / "roster.json").read_text())["roster"][
        "members"
    ]
    return members


def nothing_left() -> bool:
    said = subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=True
    ).stdout
    return f"pp{os.getpid()}-" not in said
