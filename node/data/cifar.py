"""CIFAR-10 from its binary version (cifar-10-binary.tar.gz, unpacked).

The Python version holds pickles and is never opened.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from node.data.examples import Examples
from node.data.paths import find
from peer.errors import DataError

RECORD = 1 + 3 * 32 * 32
"""A label, then red, green, blue rows of 32×32 pixels."""


def cifar_10() -> tuple[Examples, Examples]:
    """50,000 + 10,000 photographs of 3×32×32 in ten classes (Krizhevsky 2009): (train, test).

    Raises:
        ConfigurationError, DataError: the files are missing or damaged.
    """
    folder = find(
        "cifar-10", "unpack cifar-10-binary.tar.gz (the binary version, no pickle) into it"
    )
    inner = next((path.parent for path in sorted(folder.rglob("test_batch.bin"))), folder)
    train = read([inner / f"data_batch_{k}.bin" for k in range(1, 6)])
    return train, read([inner / "test_batch.bin"])


def read(paths: list[Path]) -> Examples:
    """The records of these files, one after another.

    Raises:
        DataError: a file is missing, cut, or has labels beyond 9.
    """
    parts = []
    for path in paths:
        try:
            raw = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(
                f"{path} can't be read ({error.strerror}); unpack cifar-10-binary.tar.gz again."
            ) from None
        if len(raw) == 0 or len(raw) % RECORD or raw[::RECORD].max() > 9:
            raise DataError(
                f"{path} is not a whole CIFAR-10 batch (binary version); unpack "
                "cifar-10-binary.tar.gz again."
            )
        parts.append(raw.reshape(-1, RECORD))
    records = np.concatenate(parts)
    images, labels = records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)
    return Examples(torch.from_numpy(images), torch.from_numpy(labels))
