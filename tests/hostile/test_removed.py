"""A member that is removed from the roster while the run goes on, and certificates that are
replaced in one.
"""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from kit.attacked_cluster import cluster, state_of, warns
from kit.clusters import Cluster, Process, events, identity_of
from kit.raw_http2 import Raw
from node.experiments.federation import remove_members
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import load_key

CUT_SECONDS = 5.0
"""From the new roster's arrival to the last byte for whom it removes."""


def remove(c: Cluster, name: str) -> bytes:
    """The next version of the roster, without this member."""
    remove_members(c.folder, [name], c.folder / "federation")
    return (c.folder / "roster.json").read_bytes()


def put(file: Path, content: bytes) -> None:
    """In the place of another file, at once."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(content)
    os.replace(draft, file)


def last_release(process: Process, recipient: str) -> int:
    """The last round in which something was released to this neighbor."""
    return max(
        (it["round"] for it in process.events("release") if it["recipient"] == recipient),
        default=-1,
    )


@pytest.mark.cluster
async def test_who_is_removed_is_cut_and_the_run_goes_on(tmp_path: Path) -> None:
    """n0 hears of it first, n1 later, and n2, who is removed, never; n0 and n1 lose no round with
    each other.
    """
    async with cluster(tmp_path, nodes=3, rounds=100_000, train={"checkpoint_every": 1000}) as c:
        n0, n1, n2 = (c.start(name) for name in c.homes)
        await n0.until(lambda: n0.reached(5) and last_release(n0, "n2") > 0)
        newer = remove(c, "n2")

        put(c.homes["n0"] / "roster.json", newer)
        await n0.until(lambda: state_of(n0, "n2") == "removed", CUT_SECONDS)
        cut = n0.events("round")[-1]["round"]
        await n1.until(lambda: warns(n1, "version 2 of the roster"))
        await n2.until(lambda: state_of(n2, "n0") == "lost")
        assert state_of(n1, "n2") == "live"

        put(c.homes["n1"] / "roster.json", newer)
        n1.popen.send_signal(signal.SIGHUP)
        await n1.until(lambda: state_of(n1, "n2") == "removed", CUT_SECONDS)
        await n1.until(lambda: not warns(n1, "this node version 1"))
        after = n0.events("round")[-1]["round"]
        await n0.until(lambda: n0.reached(after + 20))
        assert last_release(n0, "n2") <= cut + 1
        assert last_release(n0, "n1") > after
        assert not [
            it
            for it in (*n0.events("lost_edge"), *n1.events("lost_edge"))
            if it["peer"] in ("n0", "n1")
        ]
        [told] = n0.events("roster")
        assert told["version"] == 2

        n0.popen.terminate()
        assert await n0.ended() == 0
        n0 = c.start("n0")  # it computes the same W, and does not wait for n2
        reached = events(c.homes["n0"], "round")[-1]["round"]
        await n0.until(lambda: n0.reached(reached + 5))
        assert state_of(n0, "n2") == "removed"
        assert n2.code is None


@pytest.mark.cluster
async def test_a_node_that_is_removed_itself_ends(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=2, rounds=100_000) as c:
        n0, n1 = (c.start(name) for name in c.homes)
        await n0.until(lambda: n0.reached(1))
        put(c.homes["n1"] / "roster.json", remove(c, "n1"))
        assert await n1.ended(CUT_SECONDS + 5) == 77
        assert "n1 was removed from the roster" in n1.log
        assert await c.start("n1").ended() == 78


@pytest.mark.cluster
async def test_a_roster_that_changes_anything_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Also one that somebody else signed, and half a file."""
    async with cluster(tmp_path, nodes=2, rounds=100_000) as c:
        n0, n1 = (c.start(name) for name in c.homes)
        await n0.until(lambda: n0.reached(1))
        file = c.homes["n0"] / "roster.json"
        old = file.read_bytes()
        for bad, said in (
            (old.replace(b'"name": "n1"', b'"name": "nX"'), "not signed by the federation"),
            (old[:100], "is not a roster"),
        ):
            put(file, bad)
            await n0.until(partial(warns, n0, said))
        put(file, old)
        before = n0.events("round")[-1]["round"]
        await n0.until(lambda: n0.reached(before + 5))
        assert state_of(n0, "n1") == "live"
        assert not n0.events("roster", "lost_edge")
        assert n1.code is None


@pytest.mark.cluster
async def test_a_new_certificate_costs_no_round(tmp_path: Path) -> None:
    """It expires in 20 days, which is said; new connections are shown it, and no edge notices."""
    async with cluster(tmp_path, nodes=2, rounds=100_000) as c:
        n0, n1 = (c.start(name) for name in c.homes)
        await n0.until(lambda: n0.reached(3))
        authority, home = CertificateAuthority.load(c.folder / "federation"), c.homes["n0"]
        key = load_key(home / "node.key").public_key()
        put(home / "node.pem", authority.issue(key, days=20))
        await n0.until(lambda: warns(n0, "expires in 19 days"))
        shown = x509.load_der_x509_certificate(certificate(c, "n0", asker="n1"))
        assert shown.not_valid_after_utc < datetime.now(UTC) + timedelta(days=21)

        put(home / "node.pem", authority.issue(key))
        await n0.until(
            lambda: (
                (seen := n0.status())
                and not any("certificate" in text for text in seen["warnings"])
            )
        )
        assert len(n0.events("certificate")) == 2
        before = n0.events("round")[-1]["round"]
        await n0.until(lambda: n0.reached(before + 20))
        for process in (n0, n1):
            assert not process.events("lost_edge", "withheld", "rejected")
            rounds = [it["round"] for it in process.events("round")]
            assert rounds == list(range(len(rounds)))


def certificate(c: Cluster, name: str, *, asker: str) -> bytes:
    """What this node shows to a new connection (DER)."""
    with Raw(identity_of(c, asker), c.addresses[name], identity_of(c, name).id) as raw:
        found = raw.socket.getpeercert(binary_form=True)
        assert found
        return found
