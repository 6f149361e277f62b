"""The tiny sweep: its file, and its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.sweeps import TINY, Here
from node.experiments.sweep import loop
from node.experiments.sweep.folder import Folder
from node.experiments.sweep.grid import Sweep, load


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """The tiny sweep, finished."""
    place = tmp_path_factory.mktemp("swept")
    (place / "tiny.toml").write_text(TINY)
    sweep = load(place / "tiny.toml")
    folder = Folder(place / "out")
    with folder.claimed(sweep):
        outcome = loop.run(sweep, folder, Here(), quiet=True)
    assert (outcome.finished, outcome.failed, outcome.left) == (12, {}, 0)
    return sweep, place / "out"
