"""What keeps a neighbor away is said as what it is: a firewall, nobody there, no TLS, a wrong name.

Firewalls are network namespaces that answer nothing from a port: `ip rule` and a black hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Process, experiment, until
from kit.network_namespaces import ip, switch, why_not
from node.config import RunConfig, load
from node.experiments.hosts import pack
from peer.errors import Unreachable
from peer.identity.authority import CertificateAuthority
from peer.transport import sockets
from peer.transport.grpc import Grpc

reason = why_not()
in_namespaces = pytest.mark.skipif(bool(reason), reason=reason or "can be run")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def speaks_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("serve", "says"),
    [
        (closes, "closes connections at once"),
        (speaks_plainly, "speaks no TLS"),
        (None, "takes connections, but gave no answer in time"),
    ],
)
async def test_what_listens_is_told_apart(tmp_path: Path, serve: Serve | None, says: str) -> None:
    """None: nobody takes the connections that the system makes."""
    ca = CertificateAuthority.create(tmp_path / "ca")
    one, other = (ca.enrol(tmp_path / name) for name in ("one", "other"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = serve and await asyncio.start_server(serve, sock=listener)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        link = Grpc(one, "127.0.0.1:0").link(other.id, address)
        with pytest.raises(Unreachable) as error:
            await link.call("Beat", b"", 1.0)
        assert says in str(error.value)
        assert address in str(error.value)
        assert "certificate" not in str(error.value)
        await link.close()
        if server:
            server.close()
            await server.wait_closed()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "Nobody listens at 127.0.0.1:1."),
        ("nothing.invalid:1", "The name nothing.invalid can't be found."),
    ],
)
async def test_an_address_is_tried(address: str, says: str) -> None:
    assert await sockets.why_unreachable(address) == says


@contextlib.asynccontextmanager
async def two(folder: Path, firewalled: str) -> AsyncIterator[dict[str, Process]]:
    """east and west on hosts of their own; the port of one of them answers nobody."""
    config = experiment(nodes=2, rounds=2, kind="ring", start={"timeout_s": 200.0})
    with switch(2) as hosts:
        at = dict(zip(("east", "west"), hosts, strict=True))
        given = [f"{name}={host.ip}:7443" for name, host in at.items()]
        pack(config, given, [], folder)
        ip("-n", at[firewalled].name, "rule", "add", "ipproto", "tcp", "sport", "7443", "blackhole")
        started: dict[str, Process] = {}
        try:
            for name, host in at.items():
                run = load(RunConfig, [folder / name / "run.toml"], environ={})
                started[name] = Process.start(folder / name, run, inside=host.inside())
            yield started
        finally:
            for process in started.values():
                process.kill()


def trouble(process: Process) -> Any:
    seen = process.status()
    return seen and seen["neighbors"] and seen["neighbors"][0]["last_error"]


@in_namespaces
@pytest.mark.cluster
@pytest.mark.parametrize("firewalled", ["east", pytest.param("west", marks=pytest.mark.long)])
async def test_a_firewall_is_named_at_both_ends(tmp_path: Path, firewalled: str) -> None:
    """Who is behind it can't know, and is told by the other, which it reaches. (The one whose name
    comes first proposes the edge, so the two ways differ.)
    """
    async with two(tmp_path / "packed", firewalled) as started:
        [other] = {*started} - {firewalled}
        address = f"10.77.0.{1 if firewalled == 'east' else 2}:7443"
        why = f"Nothing answers at {address}: a firewall, a wrong address, or the machine is off."
        inner = f"{other} can't reach this node: {why}"
        await until(lambda: trouble(started[other]) == why, what=lambda: started[other].status())
        behind = started[firewalled]
        await until(lambda: trouble(behind) == inner, what=lambda: behind.status())
        await until(lambda: f"waits for {firewalled} since " in started[other].log)
        await until(lambda: why in started[other].log and inner in behind.log)
        assert "certificate" not in started[other].log + behind.log
        seen = [process.status() for process in started.values()]
        assert [it and it["state"] for it in seen] == ["waiting for peers"] * 2
        until_s = [wait["until_s"] for it in seen if it for wait in it["waiting_for"]]
        assert len(until_s) == 2
        assert all(0 < seconds < 200 for seconds in until_s), "the start has an end"
