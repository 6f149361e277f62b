"""Small files that unpack to very much: each is a sentence, and the memory is not taken."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from node import packing
from node.config import TaskSection
from node.config.features import NumberFeature
from node.data import idx, own
from node.encoding import read_text
from peer.errors import DataError

SIZE = 1 << 27
"""Bytes that each would unpack to: an eighth of a gibibyte."""
UNPACKS = "would unpack to more than 100 times its size"
TABLE = TaskSection(features={"a": NumberFeature(center=0, scale=1)}, label="b", classes=2)
IMAGES = TaskSection(labels=("a", "b"), classes=2, image_size=8)


def zeros(write: Callable[[bytes], object], start: bytes = b"") -> None:
    write(start)
    for _ in range(SIZE >> 20):
        write(bytes(1 << 20))


def npz(folder: Path) -> Path:
    path = folder / "data.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "|u1", "fortran_order": False, "shape": (SIZE >> 6, 8, 8)}
        )
        zeros(file.write, head.getvalue())
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("y.npy", "w") as file,
    ):
        np.save(file, np.zeros(SIZE >> 6, np.int64))
    return path


def gzipped(name: str, start: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with gzip.open(folder / name, "wb", compresslevel=1) as file:
            zeros(file.write, start)
        return folder / name

    return make


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'peerpoise[tables]'")
    from pyarrow import parquet

    column = pyarrow.array(np.zeros(SIZE, np.int8))
    parquet.write_table(
        pyarrow.table({"a": column, "b": column}), folder / "data.parquet", compression="zstd"
    )
    return folder / "data.parquet"


def picture(folder: Path) -> Path:
    """10,000 × 10,000 pixels."""
    image = pytest.importorskip("PIL.Image", reason="pip install 'peerpoise[images]'")
    (folder / "images" / "a").mkdir(parents=True)
    image.new("1", (10_000, 10_000)).save(folder / "images" / "a" / "x.png")
    return folder / "images"


BOMBS = {
    "npz": (npz, lambda path: own(path, TaskSection()), UNPACKS),
    "csv.gz": (gzipped("data.csv.gz", b"a,b\n1,0\n"), lambda path: own(path, TABLE), UNPACKS),
    "txt.gz": (gzipped("data.txt", b"a"), read_text, UNPACKS),
    "idx.gz": (
        gzipped("x-idx1-ubyte.gz", b"\0\0\x08\x01"),
        lambda path: idx.read(path, 1),
        UNPACKS,
    ),
    "parquet": (parquet, lambda path: own(path, TABLE), UNPACKS),
    "parquets": (lambda folder: parquet(folder).parent, lambda path: own(path, TABLE), UNPACKS),
    "png": (picture, lambda path: own(path, IMAGES), "more than 64 million pixels"),
}


@contextmanager
def little_more_memory(size: int) -> Iterator[None]:
    """Within the block this process can take so many bytes more, and then gets MemoryError."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_a_sentence_and_takes_no_memory(tmp_path: Path, kind: str) -> None:
    make, read, says = BOMBS[kind]
    path = make(tmp_path)
    small = sum(
        file.stat().st_size
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
    assert small < SIZE / packing.RATIO
    with (
        little_more_memory(packing.FREE * 2 + (64 << 20)),
        pytest.raises((DataError, OSError), match=says) as caught,
    ):
        read(path)
    assert "\n" not in str(caught.value)


def test_without_the_bound_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power check: all of it is there, and its length is what is wrong with it."""
    monkeypatch.setattr(packing, "RATIO", 10_000)
    make, read, _ = BOMBS["idx.gz"]
    with pytest.raises(DataError, match=f"but holds {SIZE - 4}"):
        read(make(tmp_path))


def test_what_is_not_packed_may_be_as_large_as_it_is(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz", x=np.zeros((20_000, 64, 64), np.uint8), y=np.zeros(20_000, np.int64)
    )
    assert len(own(tmp_path / "data.npz", TaskSection())) == 20_000


def test_no_other_reader_of_pictures_is_asked(tmp_path: Path) -> None:
    """An EPS names programs; whatever its name ends in, it is no picture here."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    )
    with pytest.raises(DataError, match="can't be read as an image"):
        own(tmp_path, IMAGES)
