"""A ledger that was copied to a second machine, and both go on: whoever meets a neighbor of the other
releases nothing more.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.privacy.accountant import Mechanism
from node.privacy.ledger import Ledger
from node.records.peer_heads import LedgerWitness, NeighborLedgerHeads
from peer.errors import LedgerError
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import Identity

STRICT = Mechanism(sigma=2.0, rate=0.1)


def meet(ledger: Ledger, identity: Identity, neighbor: NeighborLedgerHeads) -> None:
    """The handshake of one daemon with a neighbor, which remembers what it was told."""
    unused = NeighborLedgerHeads(Path("nowhere"))
    witness = LedgerWitness(ledger, identity, ids={}, heads=unused, check=ledger.check_remembered)
    witness.challenge(neighbor.observe("me", witness.current()))


def spend(ledger: Ledger, since: int, rounds: int) -> None:
    for t in range(since, since + rounds):
        ledger.debit("run", t, "b", STRICT)


@pytest.mark.parametrize("more", [1, 2, 5])
def test_a_fork_is_noticed_when_it_meets_a_neighbor(tmp_path: Path, more: int) -> None:
    """Fewer debits than the other machine's, as many, and more."""
    identity = CertificateAuthority.create(tmp_path / "ca").enrol(tmp_path / "me")
    neighbor = NeighborLedgerHeads(tmp_path / "remembered.json")
    with Ledger.open(tmp_path / "here", "ward") as ledger:
        spend(ledger, 0, 3)
        meet(ledger, identity, neighbor)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (Ledger.open(tmp_path / place, "ward") for place in ("here", "there"))
    with here, there:
        spend(here, 3, 2)
        meet(here, identity, neighbor)
        spend(there, 9, more)  # other rounds: another history
        with pytest.raises(LedgerError, match=r"remembers (more debits|another history)"):
            meet(there, identity, neighbor)
        with pytest.raises(LedgerError, match="count-lost"):
            spend(there, 20, 1)
        if more > 2:  # it told the neighbor of more than the first one has
            with pytest.raises(LedgerError, match="remembers more debits"):
                meet(here, identity, neighbor)
        else:
            meet(here, identity, neighbor)
            spend(here, 30, 1)
