"""Programs are forked in tests, or a run of all of them takes twice as long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import peer.transport.grpc  # noqa: F401  (sets variables in this process)
from kit import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere everything is started as ever")
def test_what_a_test_imports_keeps_no_program_from_being_forked() -> None:
    """One that is started has not imported torch by itself."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    words = [sys.executable, "-m", "kit.loaded"]
    forked = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert "torch._dynamo" in forked.stdout.split()
    assert "grpc" not in forked.stdout.split(), "what it does after a fork is its own matter"
