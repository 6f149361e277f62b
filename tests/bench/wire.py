"""The wire against sockets: gRPC in clear against raw TCP, gRPC with mutual TLS against Python's
TLS 1.3 sockets.

Two processes over loopback, both directions at once on kept connections, the four kinds
interleaved. CPU seconds per GB (both processes, both directions) are the steady figure; wall time
is noisy on a busy machine. Both sides of every comparison do the same work: send from one buffer,
receive into one preallocated slot.

    python tests/bench/wire.py [--quick]     table on stderr, JSON on stdout
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from node import process
from peer import codec
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity
from peer.transport.grpc import Grpc

MB = 1_000_000
KINDS = ("tcp", "grpc", "tls", "grpc+mtls")
PAIRS = {"grpc": ("tcp", 16, 2.5, 1.5), "grpc+mtls": ("tls", 100, 1.3, 1.2)}
"""kind -> (what it is compared with, from how many MB on the aims hold, largest CPU ratio, largest
wall ratio).
"""


class ReceiveBuffer:
    """A service that writes each transfer into its preallocated slot."""

    def __init__(self, slot: memoryview) -> None:
        self.slot, self.arrived = slot, asyncio.Semaphore(0)

    async def call(self, caller: str | None, method: str, request: bytes) -> bytes:
        return b""

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        place = 0
        async for message in messages:
            self.slot[place : place + len(message)] = message
            place += len(message)
        self.arrived.release()
        return b"ok"


class End:
    """One of the two processes."""

    def __init__(self, folder: Path, name: str, other: str, largest: int) -> None:
        self.files = {part: folder / name / part for part in ("node.key", "node.pem", "ca.pem")}
        self.identity = Identity.load(
            self.files["node.key"], self.files["node.pem"], self.files["ca.pem"]
        )
        self.peer_id = Identity.load(*(folder / other / part for part in self.files)).id
        self.data, self.slot = memoryview(bytes(largest)), memoryview(bytearray(largest))
        self.grpc = {
            "grpc": Grpc(None, "127.0.0.1:0"),
            "grpc+mtls": Grpc(self.identity, "127.0.0.1:0"),
        }
        self.services = {kind: ReceiveBuffer(self.slot) for kind in self.grpc}
        self.links: dict[str, Any] = {}
        self.sockets: dict[str, tuple[socket.socket, socket.socket]] = {}

    async def listen(self) -> dict[str, str]:
        return {
            kind: await transport.serve(self.services[kind])
            for kind, transport in self.grpc.items()
        }

    def dial(self, addresses: dict[str, str]) -> None:
        for kind, transport in self.grpc.items():
            self.links[kind] = transport.link(self.peer_id, addresses[kind])

    def tls(self, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.files["ca.pem"])
        context.load_cert_chain(self.files["node.pem"], self.files["node.key"])
        return context

    async def exchange(self, kind: str, size: int, times: int) -> float:
        """`times` × `size` bytes each way; CPU seconds of this process."""
        start = time.process_time()
        if kind in self.grpc:
            for _ in range(times):
                sending = self.links[kind].transfer(self.frames(size))
                await asyncio.gather(sending, self.services[kind].arrived.acquire())
        else:
            out, back = self.sockets[kind]
            await asyncio.to_thread(self.by_socket, out, back, size * times)
        return time.process_time() - start

    async def frames(self, size: int) -> AsyncIterator[bytes]:
        for offset, length in codec.frames(size):
            yield bytes(self.data[offset : offset + length])

    def by_socket(self, out: socket.socket, back: socket.socket, size: int) -> None:
        """One connection per direction: OpenSSL must not read and write one at the same time."""
        sender = threading.Thread(target=self.send, args=(out, size))
        sender.start()
        largest, place = len(self.slot), 0
        while size:
            got = back.recv_into(self.slot[place : place + min(size, codec.FRAME, largest - place)])
            assert got, "the other side is gone"
            size -= got
            place = (place + got) % largest
        sender.join()

    def send(self, connection: socket.socket, size: int) -> None:
        for offset, length in codec.frames(size):
            connection.sendall(self.data[offset % (len(self.data) - codec.FRAME + 1) :][:length])

    async def close(self) -> None:
        for link in self.links.values():
            await link.close()
        for transport in self.grpc.values():
            await transport.close(0)
        for connection in (one for pair in self.sockets.values() for one in pair):
            connection.close()


async def child(folder: Path, largest: int) -> None:
    end = End(folder, "b", "a", largest)
    listeners = {kind: socket.create_server(("127.0.0.1", 0)) for kind in ("tcp", "tls")}
    ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
    say({"grpc": await end.listen(), "ports": ports})
    end.dial(json.loads(await asyncio.to_thread(sys.stdin.readline)))
    context = end.tls(server=True)
    for kind, listener in listeners.items():
        pair = [listener.accept()[0] for _ in range(2)]
        if kind == "tls":
            pair = [context.wrap_socket(one, server_side=True) for one in pair]
        end.sockets[kind] = (pair[0], pair[1])
        listener.close()
    while line := await asyncio.to_thread(sys.stdin.readline):
        say(await end.exchange(**json.loads(line)))
    await end.close()


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


async def measure(sizes: list[int], repetitions: int) -> list[dict[str, Any]]:
    """One row per size and kind: CPU seconds per GB and wall seconds per exchange, medians."""
    with tempfile.TemporaryDirectory() as name:
        folder, largest = Path(name), max(sizes) * MB + codec.FRAME
        authority = CertificateAuthority.create(folder / "ca")
        for node in ("a", "b"):
            authority.enrol(folder / node)
        command = [sys.executable, __file__, "--child", name, "--largest", str(largest)]
        process = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            end = End(folder, "a", "b", largest)
            there = json.loads(process.stdout.readline())
            print(json.dumps(await end.listen()), file=process.stdin, flush=True)
            end.dial(there["grpc"])
            context = end.tls(server=False)
            for kind, port in there["ports"].items():
                pair = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
                if kind == "tls":
                    pair = [context.wrap_socket(one) for one in pair]
                end.sockets[kind] = (pair[1], pair[0])
            rows = [await one_size(end, process, size, repetitions) for size in sizes]
            await end.close()
            process.stdin.close()
    return [row for of_size in rows for row in of_size]


async def one_size(end: End, process: Any, size: int, repetitions: int) -> list[dict[str, Any]]:
    times = max(1, 32 // size)
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for repetition in range(repetitions + 1):
        for kind in KINDS:
            order: dict[str, Any] = {"kind": kind, "size": size * MB, "times": times}
            print(json.dumps(order), file=process.stdin, flush=True)
            start = time.perf_counter()
            cpu = await end.exchange(**order)
            cpu += json.loads(await asyncio.to_thread(process.stdout.readline))
            if repetition:  # the first connects and warms up
                wall = (time.perf_counter() - start) / times
                taken[kind].append((cpu / (2 * times * size * MB / 1e9), wall))
    rows = []
    for kind, figures in taken.items():
        cpu, wall = (statistics.median(column) for column in zip(*figures, strict=True))
        rows.append({"mb": size, "kind": kind, "cpu_seconds_per_gb": cpu, "wall_seconds": wall})
    return rows


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios and the aims beside them."""
    by_kind = {(row["mb"], row["kind"]): row for row in rows}
    ratios = []
    for (mb, kind), row in by_kind.items():
        if kind not in PAIRS:
            continue
        base, least, cpu_aim, wall_aim = PAIRS[kind]
        of = by_kind[mb, base]
        cpu = row["cpu_seconds_per_gb"] / of["cpu_seconds_per_gb"]
        wall = row["wall_seconds"] / of["wall_seconds"]
        aims = {"cpu_aim": cpu_aim, "wall_aim": wall_aim} if mb >= least else {}
        ratios.append(
            {"mb": mb, "kind": kind, "against": base, "cpu_ratio": cpu, "wall_ratio": wall, **aims}
        )
    return ratios


def show(rows: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> None:
    table = Table(
        "MB each way", "kind", "CPU s/GB", "wall ms", "CPU ratio", "wall ratio", title="the wire"
    )
    by = {(r["mb"], r["kind"]): r for r in ratios}
    for row in rows:
        ratio = by.get((row["mb"], row["kind"]), {})
        cells = [f"{row['cpu_seconds_per_gb']:.2f}", f"{row['wall_seconds'] * 1000:.1f}"]
        for what in ("cpu", "wall"):
            aim = f" (≤ {ratio[f'{what}_aim']})" if f"{what}_aim" in ratio else ""
            cells.append(f"{ratio[f'{what}_ratio']:.2f}{aim}" if ratio else "")
        table.add_row(str(row["mb"]), row["kind"], *cells)
    Console(stderr=True).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 and 16 MB, two repetitions")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--largest", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    process.retain_freed_memory()  # as every daemon does
    if options.child:
        asyncio.run(child(options.child, options.largest))
        return
    rows = asyncio.run(
        measure([1, 16] if options.quick else [1, 16, 100], 2 if options.quick else 5)
    )
    ratios = compare(rows)
    show(rows, ratios)
    print(json.dumps({"benchmark": "wire", "rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
