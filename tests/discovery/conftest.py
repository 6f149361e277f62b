"""Keys, rosters and members without a daemon; clusters come from the cluster's tests, services from the wire's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("cluster", "wire")]

from peer.identity import CertificateAuthority, Identity
from peer.roster import Member, Roster

NAMES = ("alice", "bob", "carol", "dave")


@dataclass(frozen=True)
class People:
    """A federation; mallory has a certificate of it, but is in no roster."""

    identities: dict[str, Identity]

    def __getitem__(self, name: str) -> Identity:
        return self.identities[name]

    def id(self, name: str) -> str:
        return self.identities[name].id

    def roster(self, **addresses: str) -> Roster:
        """All but mallory, with these addresses."""
        found = {name: (addresses[name],) if name in addresses else () for name in NAMES}
        return Roster(1, 0, tuple(Member(name, self.id(name), many) for name, many in found.items()))


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return People({name: ca.enrol(folder / name) for name in (*NAMES, "mallory")})
