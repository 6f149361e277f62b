"""Bundled data, own data, and every mistake one can make with a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node import data
from node.config import TaskSection
from node.data import arrays, partition
from peer.errors import ConfigurationError, DataError

THREE = TaskSection(classes=3)


def test_digits_are_split_the_same_way_everywhere_and_balanced():
    train, test = data.digits()
    assert len(train) + len(test) == 1797
    assert train.shape == test.shape == (1, 8, 8)
    assert train.x.dtype == torch.float32
    assert (float(train.x.min()), float(train.x.max())) == (0, 1)
    share = torch.bincount(test.y) / (torch.bincount(train.y) + torch.bincount(test.y))
    assert torch.allclose(share, torch.full((10,), 0.2), atol=0.004)
    # Row numbers mean the same for ever: these sums change with the seed of the split and with any
    # reordering.
    position = torch.arange(1, len(train) + 1)
    assert (len(train), int((train.y * position).sum())) == (1438, 4663390)


def test_train_and_test_share_no_image():
    train, test = data.digits()
    seen = {image.numpy().tobytes() for image in train.x}
    assert not [1 for image in test.x if image.numpy().tobytes() in seen]


def test_images_are_scaled_bilinearly():
    train, _ = data.digits()
    few = train.take(np.arange(3))
    assert few.scaled(28).x.shape == (3, 1, 28, 28)
    assert few.scaled(None) is few
    assert few.scaled(8) is few
    ramp = data.Examples(
        torch.arange(4.0).expand(1, 1, 4, 4).contiguous(), torch.zeros(1, dtype=torch.int64)
    )
    assert torch.allclose(ramp.scaled(8).x[0, 0, 3, 1:-1], torch.arange(0.25, 2.9, 0.5))


def test_digits_are_those_of_scikit_learn():
    """Which is not imported for them."""
    datasets = pytest.importorskip("sklearn.datasets", reason="pip install 'peerpoise[demo]'")
    source = datasets.load_digits()
    x = torch.from_numpy(source.images.astype(np.float32) / 16).unsqueeze(1)
    expected = data.Examples(x, torch.from_numpy(source.target.astype(np.int64))).split()
    for part, right in zip(data.digits(), expected, strict=True):
        assert torch.equal(part.x, right.x)
        assert torch.equal(part.y, right.y)


def test_missing_scikit_learn_is_one_sentence(monkeypatch):
    monkeypatch.setattr("node.data.arrays.find_spec", lambda name: None)
    data._public.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pip install 'peerpoise\[demo\]'"):
        data.public_sets(TaskSection())


def test_unknown_data_set():
    with pytest.raises(
        ConfigurationError, match="Unknown data set 'minst'; choose cifar-10, digits, fashion-mnist"
    ):
        data.public_sets(TaskSection(data="minst"))


def good() -> dict[str, np.ndarray]:
    return {"x": np.zeros((4, 6, 5), np.float32), "y": np.array([0, 1, 2, 2])}


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "mine.npz"
    kept: dict[str, Any] = {n: each for n, each in (good() | arrays).items() if each is not None}
    np.savez(path, **kept)
    return path


def test_own_data_of_both_shapes_and_types(tmp_path):
    mine = data.own(saved(tmp_path), THREE)
    assert mine.shape == (1, 6, 5)
    assert mine.y.tolist() == [0, 1, 2, 2]
    color = np.full((4, 3, 6, 5), 255, np.uint8)
    mine = data.own(saved(tmp_path, x=color, y=np.zeros(4, np.uint8)), THREE)
    assert mine.shape == (3, 6, 5)
    assert mine.floats().x.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": None}, "no array x"),
        ({"y": None}, "no array y"),
        ({"x": np.zeros((4, 6), np.float32)}, "shape"),
        ({"x": np.zeros((4, 6, 5), np.int64)}, "uint8"),
        ({"x": np.zeros((0, 6, 5)), "y": np.zeros(0, np.int64)}, "empty"),
        ({"x": np.full((4, 6, 5), np.nan)}, "finite"),
        ({"x": np.full((4, 6, 5), 1e300)}, "finite"),
        ({"y": np.zeros(4)}, "one integer per image"),
        ({"y": np.zeros((4, 1), np.int64)}, "one integer per image"),
        ({"y": np.zeros(3, np.int64)}, "4 images but y has 3"),
        ({"y": np.array([0, 1, 2, 3])}, "labels go from 0 to 3"),
        ({"y": np.array([0, 1, -1, 2])}, "labels go from -1"),
        ({"y": np.array([None, 1, 2, 2])}, "can't be read as numpy data: it holds Python objects"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, arrays, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        data.own(saved(tmp_path, **arrays), THREE)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(DataError, match="no data file"):
        data.own(tmp_path / "none.npz", THREE)
    with pytest.raises(DataError, match="can't be read"):
        arrays.npz(tmp_path, 3)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="can't be read"):
        data.own(tmp_path / "text.npz", THREE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        arrays.npz(tmp_path / "one.npy", 3)


def test_a_cut_file_is_one_sentence(tmp_path):
    whole = saved(tmp_path, x=np.random.default_rng(0).random((4, 6, 5))).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError):
            data.own(tmp_path / "cut.npz", THREE)


def test_a_flipped_byte_never_escapes_as_another_error(tmp_path):
    whole = saved(tmp_path, x=np.random.default_rng(0).random((4, 6, 5))).read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        (tmp_path / "flip.npz").write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        )
        try:
            data.own(tmp_path / "flip.npz", THREE)
        except DataError:
            refused += 1
    assert refused > len(whole) // 7 // 2


def test_rows_come_back_as_saved(tmp_path):
    partition.save(tmp_path / "n0.npy", np.array([1, 5, 7]))
    assert data.rows(tmp_path / "n0.npy", 8).tolist() == [1, 5, 7]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (np.zeros(0, np.int64), "names no rows"),
        (np.array([0, 8]), "outside 0 … 7"),
        (np.array([-1, 2]), "outside"),
        (np.array([2, 2]), "a row twice"),
        (np.zeros(3), "one-dimensional"),
        (np.zeros((3, 1), np.int64), "one-dimensional"),
    ],
)
def test_wrong_rows_are_one_sentence(tmp_path, rows, sentence):
    partition.save(tmp_path / "n0.npy", rows)
    with pytest.raises(DataError, match=sentence):
        data.rows(tmp_path / "n0.npy", 8)
