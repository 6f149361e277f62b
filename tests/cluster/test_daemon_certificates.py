"""A daemon among impostors: it refuses them, they learn nothing, and its status says why in a
sentence each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit.clusters import Cluster, Process, health, identity_of, until
from kit.wire import Forgery, Recorder, name_of, new_key
from node.daemon import bootstrap
from peer import codec
from peer.errors import ConfigurationError, IdentityError, PeerpoiseError, Unreachable
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity, load_key
from peer.transport.grpc import Grpc
from peer.v1 import peer_pb2 as pb


@pytest.mark.cluster
async def test_impostors_are_refused_at_both_ends(cluster: Any, tmp_path: Path) -> None:
    async with cluster(nodes=7) as c, AsyncExitStack() as stack:
        federation = CertificateAuthority.load(c.folder / "federation")
        own = {name: identity_of(c, name) for name in c.homes}
        strangers = CertificateAuthority.create(tmp_path / "strangers")
        key = new_key()
        impostors = {
            "n1": None,
            "n2": strangers.enrol(tmp_path / "stranger"),
            "n3": Forgery(
                federation,
                load_key(c.homes["n3"] / "node.key"),
                (f"{own['n3'].id}.peerpoise",),
                start=timedelta(days=-9),
                end=timedelta(days=-1),
            ).of(own["n3"]),
            "n4": Forgery(federation, key, (name_of(key),)).of(own["n4"]),
            "n5": own["n1"],
        }
        listening = {name: Recorder.open() for name in impostors}
        transports = {
            name: Grpc(identity, c.addresses[name]) for name, identity in impostors.items()
        }
        for name, transport in transports.items():
            await transport.serve(listening[name])
            stack.push_async_callback(transport.close, 0)
        honest = c.witness("n6")
        n0 = c.start("n0")

        await n0.until(
            lambda: honest.knows("n0") == "live" if hasattr(honest, "session") else False
        )
        address = c.addresses
        expected = {
            name: f"{address[name]} showed the certificate of another node."
            for name in ("n4", "n5")
        }
        for name in ("n2", "n3"):
            expected[name] = (
                f"{address[name]} and this node do not accept each other's certificate or TLS "
                "version."
            )
        errors = await n0.until(lambda: refusals(n0, impostors, expected))
        assert address["n1"] in errors["n1"]
        for name, error in errors.items():
            assert len(error) < 200, "a sentence"
            assert error.endswith(".")
            assert listening[name].calls == []
            assert listening[name].callers == []

        for name, transport in transports.items():
            link = transport.link(own["n0"].id, address["n0"])
            claimed = own[name].id
            with pytest.raises(
                Unreachable
            ) as refusal:  # also n5: a federation's key that speaks for another
                await link.call("Handshake", hello(c, own, claimed, propose=True), 5.0)
            await link.close()
            said = str(refusal.value)
            assert address["n0"] in said
            assert said.endswith(".")
        link = transports["n5"].link(
            own["n0"].id, address["n0"]
        )  # the power check: n1's key, for n1
        reply = codec.decode(
            pb.Welcome,
            await link.call("Handshake", hello(c, own, own["n1"].id, propose=False), 5.0),
        )
        await link.close()
        assert reply.code == pb.CODE_ROSTER
        assert not reply.signature, "nothing is signed for who is refused"
        seen = n0.status()
        assert seen is not None
        assert seen["state"] == "waiting for peers"
        assert {it["name"] for it in seen["neighbors"] if it["state"] == "live"} == {"n6"}

        assert await health(c, "n0", asker="n6") == "NOT_SERVING"

        n0.popen.terminate()
        assert await n0.ended(6.0) == 0
        assert "warning: " not in n0.log
        assert "Traceback" not in n0.log


def refusals(
    process: Process, impostors: Iterable[str], expected: Mapping[str, str]
) -> dict[str, str] | None:
    """What status says of the impostors, once it is what is expected: on a busy machine a call may
    be late first.
    """
    seen = process.status()
    if seen is None:
        return None
    errors = {
        it["name"]: it["last_error"] or "" for it in seen["neighbors"] if it["name"] in impostors
    }
    return errors if all(errors.values()) and expected.items() <= errors.items() else None


def hello(c: Cluster, own: dict[str, Identity], sender: str, *, propose: bool) -> bytes:
    """A handshake that is in order but for who sends it."""
    return codec.encode(
        pb.Hello(
            protocol=codec.PROTOCOL,
            run=c.run.run_id,
            roster=1,
            sender=sender,
            receiver=own["n0"].id,
            incarnation=1,
            nonce=bytes(codec.DIGEST),
            digests={"layout": bytes(codec.DIGEST)},
            propose=propose,
        )
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    c = Cluster.make(tmp_path / "cluster", nodes=2)
    c._held.close()
    return c.homes["n0"]


def expire(home: Path) -> None:
    federation = CertificateAuthority.load(home.parents[1] / "federation")
    key = load_key(home / "node.key")
    forged = Forgery(
        federation, key, (name_of(key),), start=timedelta(days=-9), end=timedelta(days=-1)
    )
    (home / "node.pem").write_bytes(forged.pem)


def swap_authority(home: Path) -> None:
    strangers = CertificateAuthority.create(home.parent / "strangers")
    (home / "node.pem").write_bytes(strangers.issue(load_key(home / "node.key").public_key()))


def swap_key(home: Path) -> None:
    shutil.copy2(home.parent / "n1" / "node.key", home / "node.key")


def swap_identity(home: Path) -> None:
    for name in ("node.key", "node.pem"):
        shutil.copy2(home.parent / "n1" / name, home / name)


def lose(home: Path) -> None:
    (home / "node.pem").unlink()


def expose(home: Path) -> None:
    (home / "node.key").chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "kind", "code"),
    [
        (expire, IdentityError, 77),
        (swap_authority, IdentityError, 77),
        (swap_key, IdentityError, 77),
        (lose, IdentityError, 77),
        (expose, IdentityError, 77),
        (swap_identity, ConfigurationError, 78),
    ],
)
def test_a_daemon_does_not_start_with_what_is_not_its_own(
    home: Path, spoil: Any, kind: type[PeerpoiseError], code: int
) -> None:
    spoil(home)
    with pytest.raises(kind) as refusal:
        bootstrap.serve(home / "node.toml")
    assert refusal.value.exit_code == code
    said = str(refusal.value)
    assert "\n" not in said
    assert len(said) < 300
    assert not (home / "journal.jsonl").exists(), "nothing was begun"


@pytest.mark.cluster
async def test_the_exit_code_of_a_missing_certificate(cluster: Any) -> None:
    """No certificate, no --insecure: no daemon. It fails closed."""
    async with cluster(nodes=2) as c:
        lose(c.homes["n0"])
        n0 = c.start("n0")
        assert await n0.ended() == 77
        assert n0.log.startswith("peerpoise: ")
        assert n0.log.count("\n") == 1
        await until(lambda: n0.status() is None)
