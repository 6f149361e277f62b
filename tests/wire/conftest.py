from __future__ import annotations

from pathlib import Path

import pytest

from kit.wire import Federation
from peer.identity.authority import CertificateAuthority


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder: Path = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return Federation(folder, ca, *(ca.enrol(folder / name) for name in ("alice", "bob", "carol")))
