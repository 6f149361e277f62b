"""Keys, rosters and members without a daemon."""

from __future__ import annotations

import pytest

from kit.bare_nodes import NAMES, People
from peer.identity.authority import CertificateAuthority


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return People({name: ca.enrol(folder / name) for name in (*NAMES, "mallory")})
