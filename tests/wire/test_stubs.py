"""The committed stubs are what the schema generates (`make stubs` writes them)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_generating_the_stubs_again_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip(
        "grpc_tools", reason="grpcio-tools is not installed (it comes with the extra [dev])"
    )
    schema = "peer/v1/peer.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", f"proto/{schema}"], cwd=ROOT, check=True)
    for name in ("peer_pb2.py", "peer_pb2.pyi"):
        assert (tmp_path / "peer/v1" / name).read_text() == (ROOT / "peer/v1" / name).read_text(), (
            "run: make stubs"
        )
