"""What hosts feed their models is told in public, without a value of theirs, and the same where
they fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from node import data, tasks
from node.config import DataSection, RunConfig, TaskSection
from peer.errors import DataError

RANDOM = np.random.default_rng(3)
BYTES = RANDOM.integers(0, 256, (20, 6, 6)).astype(np.uint8)
LABELS = np.arange(20) % 10


def inputs(path: Path, **task: object) -> Mapping[str, str]:
    """What the task of a host says that learns from this file."""
    run = RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"data": "own", **task}})
    made = tasks.make(run, DataSection(path=path, name="mine"))
    return made.inputs


def saved(folder: Path, x: np.ndarray, name: str = "mine", n: int = 20) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, x=x[:n], y=LABELS[:n])
    return path


def test_hosts_that_fit_say_the_same_whatever_their_rows_are(tmp_path: Path) -> None:
    a = inputs(saved(tmp_path, BYTES, "a"))
    b = inputs(saved(tmp_path, BYTES[:7] // 2, "b", 7))
    assert a == b == {"shape": "1×6×6", "values": "0 … 1, from integers", "classes": "0 … 9"}
    c = inputs(saved(tmp_path, BYTES / np.float32(255), "c"))
    assert c == inputs(saved(tmp_path, np.full((4, 6, 6), -3.5), "d", 4))


def test_integers_and_floats_differ_unless_the_run_declares_a_range(tmp_path: Path) -> None:
    integers, floats = saved(tmp_path, BYTES, "integers"), saved(tmp_path, BYTES / 255, "floats")
    assert inputs(integers) != inputs(floats)
    declared = {"value_range": [0, 1]}
    assert inputs(integers, **declared) == inputs(floats, **declared)
    assert inputs(integers, **declared)["values"] == "in task.value_range = [0.0, 1.0]"
    assert inputs(integers, **declared) != inputs(integers, value_range=[0, 2])
    for other in ([-1, 1], [0, 255]):
        assert inputs(integers, value_range=other) != inputs(floats, value_range=other), (
            "integers fill 0 … 1 only"
        )
        assert inputs(floats, value_range=other) == inputs(
            saved(tmp_path, BYTES / 510, "half"), value_range=other
        )


def test_bytes_of_0_and_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"x is uint8 \(0 … 255\), but nothing in it is above 1; save it"
    ):
        inputs(saved(tmp_path, BYTES // 128))
    assert inputs(saved(tmp_path, BYTES // 128 * np.uint8(255)))
    assert inputs(saved(tmp_path, BYTES * np.uint8(0)))


def test_an_npz_that_holds_other_things_is_a_sentence(tmp_path: Path) -> None:
    for x, says in (
        (np.float64(3), r"x has shape \(\)"),
        (np.array([{}], object), "Python objects, which are never"),
    ):
        np.savez(tmp_path / "mine.npz", x=x, y=LABELS, z=LABELS)
        with pytest.raises(DataError, match=says):
            inputs(tmp_path / "mine.npz")


def test_channels_first_and_channels_last_differ(tmp_path: Path) -> None:
    """Where a file can't be seen to be wrong: 3×3 images of 16 channels, or 16×3 of 3."""
    first, last = RANDOM.random((20, 3, 16, 16)), RANDOM.random((20, 16, 16, 5))
    assert inputs(saved(tmp_path, first, "first"))["shape"] == "3×16×16"
    assert inputs(saved(tmp_path, last, "last"))["shape"] == "16×16×5"


@pytest.mark.parametrize(
    "shape", [(20, 16, 16, 3), (20, 28, 28, 1), (20, 48, 32, 4), (20, 2, 16, 3)]
)
@pytest.mark.parametrize("scale", [np.uint8, np.float32])
def test_channels_last_is_refused_with_what_to_do(
    tmp_path: Path, shape: tuple[int, ...], scale: type
) -> None:
    path = saved(tmp_path, np.zeros(shape, scale))
    with pytest.raises(DataError, match=r"looks like channels last.*save np\.moveaxis\(x, -1, 1\)"):
        inputs(path)
    saved(tmp_path, np.moveaxis(np.zeros(shape, scale), -1, 1))
    assert inputs(path)["shape"].startswith(f"{shape[3]}×")


@pytest.mark.parametrize(
    "shape", [(20, 3, 16, 16), (20, 3, 16, 3), (20, 1, 16, 4), (20, 12, 16, 16), (20, 9, 1, 1)]
)
def test_channels_first_is_taken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert inputs(saved(tmp_path, np.zeros(shape)))["shape"] == "×".join(map(str, shape[1:]))


@pytest.mark.parametrize(
    "x", [BYTES.astype(np.float32), BYTES.astype(np.float64) - 128, np.full((20, 2, 2), 20.5)]
)
def test_floats_that_were_not_scaled_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    path = saved(tmp_path, x)
    with pytest.raises(
        DataError, match=r"beyond ±20; if they are 0 … 255, divide by 255.*task\.value_range"
    ):
        inputs(path)
    assert inputs(path, value_range=[-128, 255])


@pytest.mark.parametrize("x", [BYTES, BYTES / 255, BYTES / 255 * 1.5, BYTES / 255 - 0.5])
def test_what_lies_outside_of_a_declared_range_is_refused_without_a_value(
    tmp_path: Path, x: np.ndarray
) -> None:
    with pytest.raises(
        DataError, match=r"has values outside of task\.value_range = \[0\.1, 0\.9\]; scale them"
    ):
        inputs(saved(tmp_path, x), value_range=[0.1, 0.9])


def test_test_and_validation_sets_are_held_to_the_same(tmp_path: Path) -> None:
    run = RunConfig.model_validate({"privacy": {"mode": "none"}, "task": {"data": "own"}})
    train, test = saved(tmp_path, BYTES, "train"), saved(tmp_path, BYTES.astype(np.float32), "test")
    with pytest.raises(DataError, match=r"test\.npz: x has values beyond ±20"):
        tasks.make(run, DataSection(path=train, name="mine", test=test))
    test = saved(tmp_path, BYTES / 127.5 - 1, "test")
    with pytest.raises(
        DataError, match=r"Test images are floats, training images 0 … 1, from integers; bring them"
    ):
        tasks.make(run, DataSection(path=train, name="mine", test=test))
    declared = run.model_copy(
        update={"task": run.task.model_copy(update={"value_range": (0.0, 1.0)})}
    )
    test = saved(tmp_path, BYTES / 255, "test")
    assert tasks.make(declared, DataSection(path=train, name="mine", test=test))


TABLE = {"classes": 2, "features": {"age": (50.0, 20.0), "dose": (5.0, 3.0)}}


def table(folder: Path, rows: str, head: str = "age,dose,label") -> Path:
    path = folder / "mine.csv"
    path.write_text(f"{head}\n{rows}\n")
    return path


def test_tables_say_their_features_scaling_and_classes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    path = table(tmp_path, "50,5,0\n70,2,1")
    a = inputs(path, **TABLE)
    assert a["features"] == "age (50.0, 20.0), dose (5.0, 3.0)"
    assert a == inputs(table(tmp_path, "30,8.5,1\n20,1,1\n21,1.5,0", "age,dose,label"), **TABLE)
    others = [
        {**TABLE, "features": {"dose": (5.0, 3.0), "age": (50.0, 20.0)}},
        {**TABLE, "features": {"age": (50.0, 20.0), "dose": (5.0, 3.5)}},
        {**TABLE, "labels": ["0", "1"]},
        {**TABLE, "classes": 3},
    ]
    assert all(inputs(path, **other) != a for other in others)


def test_a_column_that_is_not_scaled_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    path = table(tmp_path, "50,5000,0\n70,2,1")
    with pytest.raises(
        DataError, match=r"column 'dose', centered and scaled, has values beyond ±20"
    ) as caught:
        inputs(path, **TABLE)
    assert "5000" not in str(caught.value)
    with pytest.raises(
        DataError,
        match=r"column 'dose', centered and scaled, has values outside of task.value_range",
    ):
        inputs(path, value_range=[-5, 5], **TABLE)
    assert inputs(path, value_range=[-5, 2000], **TABLE)


@pytest.mark.parametrize("deep", [False, True])
def test_folders_of_images_say_the_same_whatever_their_pixels_are(
    tmp_path: Path, deep: bool
) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("I;16" if deep else "L", (9, 9), 7).save(tmp_path / "cat" / "a.png")
    found = inputs(
        tmp_path, classes=2, labels=["cat", "dog"], image_size=4, mean=[0.5] * 3, std=[0.25] * 3
    )
    assert found == {
        "shape": "3×4×4", "values": "0 … 1, from integers", "classes": "cat, dog",
        "mean": "0.5, 0.5, 0.5", "std": "0.25, 0.25, 0.25",
    }  # fmt: skip


def test_digits_are_what_they_were() -> None:
    pytest.importorskip("sklearn", reason="pip install 'peerpoise[demo]'")
    train, test = data.public_sets(TaskSection())
    assert (train.digest()[:16], test.digest()[:16]) == ("220569b9f5bcfe64", "ebe52fd4f5f4d125")
    ranged, _ = data.public_sets(TaskSection(value_range=(0, 1)))
    assert isinstance(train, data.Examples)
    assert isinstance(ranged, data.Examples)
    assert torch.equal(ranged.x, train.x)
    with pytest.raises(DataError, match=r"digits: x has values outside of task\.value_range"):
        data.public_sets(TaskSection(value_range=(0, 0.5)))


def test_a_range_goes_from_low_to_high() -> None:
    with pytest.raises(ValidationError, match="low must be below high"):
        TaskSection(value_range=(1, 0))


def test_sets_of_text_say_how_they_are_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'peerpoise[llm]'")
    path = tmp_path / "mine.txt"
    path.write_text("One.\n\nTwo.\n")
    text = {"name": "causal-lm", "model": "bytes", "text": {"length": 16, "embeddings": True}}
    a = inputs(path, **text)
    assert a["tokens"] == "259 Bytes"
    path.write_text("Quite another.\n")
    assert inputs(path, **text) == a
    assert inputs(path, **{**text, "text": {"length": 17, "embeddings": True}}) != a
