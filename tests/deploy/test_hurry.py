"""CI on a slow machine: `--hurry` leaves out cases of a test, and never a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kit import ROOT, TESTS

FILE = """
import pytest

@pytest.mark.parametrize("case", [1, 2, 3])
def test_cases(case): pass

def test_alone(): pass
"""


def test_one_case_of_each_test_is_run(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(FILE, encoding="utf-8")

    def said(seconds: str) -> str:
        options = ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", *options, "--hurry", seconds, "."]
        environ = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "4 passed in" in said("1000")
    hurried = said("0")
    assert "2 passed, 2 skipped" in hurried
    assert "[2] " in hurried
    assert "LEFT OUT: 0 s are over" in hurried
