"""Keys, rosters and members without a daemon; clusters come from the cluster's tests, services from
the wire's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("cluster", "wire")]

from kit import NAMES, People

from peer.identity.keys import CertificateAuthority


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return People({name: ca.enrol(folder / name) for name in (*NAMES, "mallory")})
