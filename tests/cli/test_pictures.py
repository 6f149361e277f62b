"""`simulate` on pictures whose class can be learned only if they are read as a viewer shows
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kit.command import Call

EXPERIMENT = """\
[task]
data = "file"
path = "{path}"
labels = ["one", "two"]
classes = 2
image_size = 12
[train]
rounds = 60
[algorithm]
name = "d-psgd"
lr = 0.1
[privacy]
mode = "none"
batch = 16
[experiment]
nodes = 2
partition = "iid"
"""
EACH = 40
Accuracy: TypeAlias = Callable[[int], float]
RANDOM = np.random.default_rng(2)


@pytest.fixture
def accuracy(peerpoise: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accuracy:
    monkeypatch.chdir(tmp_path)
    for label in ("one", "two"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
    (tmp_path / "run.toml").write_text(EXPERIMENT.format(path=tmp_path / "pictures"))

    def simulated(channels: int) -> float:
        result = peerpoise(
            "simulate", "run.toml", "--set", f"task.channels={channels}", "--folder", "out"
        )
        assert (result.code, result.err) == (0, "")
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        mean: float = summary["task_metrics"]["accuracy"]["mean"]
        return mean

    return simulated


@pytest.mark.parametrize("channels", [1, 3])
def test_scans_of_16_bits_are_told_by_their_brightness(
    accuracy: Accuracy, tmp_path: Path, channels: int
) -> None:
    for label, low, high in (("one", 300, 9000), ("two", 15_000, 65_000)):
        for k in range(EACH):
            pixels = RANDOM.integers(low, high, (14, 12)).astype(np.uint16)
            ending = ("png", "tif")[k % 2]
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{k}.{ending}")
    assert accuracy(channels) == 1.0


def test_photos_are_told_apart_though_phones_were_held_in_all_ways(
    accuracy: Accuracy, tmp_path: Path
) -> None:
    """A light band above, or at the left; stored turned by a quarter, a half or three, as EXIF
    says.
    """
    for label, turned in (("one", False), ("two", True)):
        for k in range(EACH):
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 3, 8)[k % 4]
            stored = np.rot90(band(turned), k % 4)
            Image.fromarray(stored.copy()).save(
                tmp_path / "pictures" / label / f"{k}.jpg", exif=exif, quality=95
            )
    assert accuracy(3) == 1.0


def band(turned: bool) -> NDArray[np.uint8]:
    seen = np.full((16, 16, 3), 40.0) + RANDOM.normal(0, 10, (16, 16, 3))
    seen[:5] += 150
    return np.clip(seen.transpose(1, 0, 2) if turned else seen, 0, 255).astype(np.uint8)


def test_logos_on_nothing_are_told_by_what_is_seen(accuracy: Accuracy, tmp_path: Path) -> None:
    """What is transparent hides colors at random, in class one dark ones."""
    for label, dark in (("one", True), ("two", False)):
        for k in range(EACH):
            pixels = np.zeros((12, 12, 4), np.uint8)
            pixels[..., :3] = RANDOM.integers(0, 128, 3) + (0 if (k % 2 == 0) == dark else 127)
            pixels[3:9, 3:9] = (40, 40, 40, 255) if dark else (160, 160, 160, 255)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{k}.png")
    assert accuracy(3) == 1.0
