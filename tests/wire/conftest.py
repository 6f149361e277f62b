from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from peer.identity import CertificateAuthority, Identity


@dataclass(frozen=True)
class Federation:
    folder: Path
    ca: CertificateAuthority
    alice: Identity
    bob: Identity
    carol: Identity


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder: Path = tmp_path_factory.mktemp("federation")
    ca = CertificateAuthority.create(folder / "ca")
    return Federation(folder, ca, *(ca.enrol(folder / name) for name in ("alice", "bob", "carol")))
