"""A member at full blast: it is served at its rate and no faster, and costs the others little."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import LONG
from kit.attacked_cluster import attack, cluster, memory, warns
from kit.clusters import Cluster, Process, get, identity_of, until
from kit.wire import Federation, Recorder, nothing_left
from peer import codec
from peer.identity.authority import CertificateAuthority
from peer.transport import admission
from peer.transport.grpc import Grpc
from peer.v1 import peer_pb2 as pb

SECONDS = 3.0
CALLS = ("beats", "handshakes", "refused", "unknown")
COST = {
    "beats": 1.5,
    "handshakes": 1.5,
    "refused": 1.5,
    "unknown": 1.5,
    "small_bombs": 1.5,
    "bombs": 2.0,
    "resets": 10.0,
}
"""How much CPU of the daemon's own a round may cost under each flood, times what it costs at rest.
What grpc does with streams that are reset at once, and with the first headers of a connection, is
not ours to bound."""
MEMORY = 100.0
"""MiB on top."""
ROUNDS = 150
"""Over which a round's cost is measured."""


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    ca = CertificateAuthority.create(tmp_path / "ca")
    return Federation(
        tmp_path, ca, *(ca.enrol(tmp_path / name) for name in ("alice", "bob", "carol"))
    )


async def served(
    federation: Federation, kind: str, enough: float = float("inf")
) -> tuple[int, float]:
    """How many calls were read or refused, and in how many seconds: SECONDS, or until there are
    `enough`. Bob floods, carol is heard as ever."""
    clock = asyncio.get_running_loop().time
    async with nothing_left():
        service, listener, refused = (
            Recorder.open(take=1),
            Grpc(federation.alice, "127.0.0.1:0"),
            [],
        )
        listener.refused = lambda caller, code: (
            refused.append(code) if code != pb.CODE_BUSY else None
        )
        address = await listener.serve(service)
        count: Callable[[], int] = lambda: len(service.calls) + len(service.callers) + len(refused)  # noqa: E731
        began = clock()
        async with attack(
            "flooding_member", kind, str(federation.folder / "bob"), address, federation.alice.id
        ):
            carol = Grpc(federation.carol, "127.0.0.1:0").link(federation.alice.id, address)
            while clock() < began + SECONDS and count() <= enough:
                assert await carol.call("Beat", b"hello", 2.0)
                await asyncio.sleep(0.2)
            found = count(), clock() - began
            await carol.close()
        await listener.close(0)
        return found


def allowed(seconds: float) -> float:
    """Bob's tokens, and the few calls of carol's."""
    return admission.BURST + admission.PER_SECOND * seconds + 6 * SECONDS


@pytest.mark.parametrize("kind", CALLS)
async def test_a_member_is_served_at_its_rate(federation: Federation, kind: str) -> None:
    calls, seconds = await served(federation, kind)
    assert admission.BURST / 2 < calls <= allowed(seconds)


@pytest.mark.parametrize("kind", CALLS)
async def test_power_without_tokens_it_is_served_as_fast_as_it_calls(
    federation: Federation, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = allowed(SECONDS)
    monkeypatch.setattr(admission, "PER_SECOND", 1e9)
    calls, _ = await served(federation, kind, limit)
    assert calls > limit


@pytest.mark.cluster
@pytest.mark.parametrize(
    "kinds", [(*COST,) if LONG else ("refused",)], ids=["long" if LONG else "short"]
)
@pytest.mark.long
async def test_rounds_cost_what_they_cost_at_rest(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """n2 is a neighbor of n0's and n1's that never starts; its certificate blasts at n0."""
    start = {"timeout_s": 5.0, "min_neighbors": 1}
    async with cluster(
        tmp_path, nodes=3, rounds=100_000, start=start, train={"checkpoint_every": 1000}
    ) as c:
        n0, n1 = c.start("n0"), c.start("n1")
        await n0.until(lambda: n0.reached(20))
        for kind in kinds:
            rest, before = await cost(n0), memory(n0)
            async with attack(
                "flooding_member",
                kind,
                str(c.homes["n2"]),
                c.addresses["n0"],
                ids(c)["n0"],
                blast(c, kind),
            ):
                flooded = await cost(n0)
                print(
                    f"{kind}: a round costs {flooded / rest:.2f} times as much, "
                    f"{memory(n0) - before:+.0f} MiB"
                )
                assert flooded < COST[kind] * rest, kind
                assert memory(n0) < before + MEMORY, kind
        await until(lambda: warns(n0, "n2, a member of the roster, calls this node too often"))
        found = get(f"http://{n0.metrics}/metrics")
        assert 'peerpoise_refused_total{code="CODE_BUSY",peer="n2"}' in found
        assert not n0.events("withheld", "lost_edge")
        assert n1.code is None


async def cost(process: Process) -> float:
    """CPU seconds of a round."""
    before, first = spent(process), process.events("round")[-1]["round"]
    await process.until(lambda: process.reached(first + ROUNDS))
    return (spent(process) - before) / (process.events("round")[-1]["round"] - first)


def spent(process: Process) -> float:
    """CPU seconds of this process, in all its threads."""
    fields = (
        Path(f"/proc/{process.popen.pid}/stat")
        .read_text(encoding="utf-8")
        .rpartition(")")[2]
        .split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ids(c: Cluster) -> dict[str, str]:
    return {name: identity_of(c, name).id for name in c.homes}


def blast(c: Cluster, kind: str) -> str:
    """What n2 says over and over, in hexadecimal digits: as near to the truth as can be."""
    own, n0, run = ids(c)["n2"], ids(c)["n0"], c.run.run_id
    shared: dict[str, Any] = {
        "protocol": codec.PROTOCOL,
        "run": run,
        "sender": own,
        "receiver": n0,
        "incarnation": 1,
    }
    messages = {
        "beats": pb.Beat(run=run, sender=own, incarnation=1, round=-1, order=1),
        "handshakes": pb.Hello(**shared, roster=1, nonce=bytes(32), digests={"layout": bytes(32)}),
        "refused": pb.Header(
            **shared,
            sequence=1,
            round=1,
            role="ROLE_SAY",
            kind="x",
            layout=bytes(32),
            parts=1,
            dtype="DTYPE_FLOAT32",
        ),
    }
    return codec.encode(messages[kind]).hex() if kind in messages else ""
