"""Labeled examples, and the split of a whole set into train and test, which never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from peer.errors import ConfigurationError

SPLIT_SEED = 20260604
"""Seed of the split of a whole data set. Changing it changes what every row number means."""
INTEGERS, FLOATS, STANDARDIZED = "0 … 1, from integers", "floats", "columns, centered and scaled"
"""Where values come from, in words that nodes compare."""
FAR = 20.0
"""No value lies so far from 0 once it is scaled, by whatever means."""
TEST_SHARE = 0.2
"""Share of each class that goes to the public test set."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Images x, float32 or uint8 [n, channels, height, width], and their labels y, int64 [n], or
    float32 of a regression.

    A row of a table is an image of 1 × 1 × features. `columns` are further arrays [n] by which a
    set can be divided.
    """

    x: Tensor
    y: Tensor
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    values: str = INTEGERS
    """Where they come from: INTEGERS over their largest, FLOATS as in the file, or STANDARDIZED."""
    units: NDArray[np.int64] | None = None
    """Whose each example is (node/data/units.py), [n]; None: nobody has said."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """The examples of these row numbers [n], in their order."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        columns = {name: column[rows] for name, column in self.columns.items()}
        units = None if self.units is None else self.units[rows]
        return replace(self, x=self.x[index], y=self.y[index], columns=columns, units=units)

    def floats(self) -> Examples:
        """uint8 divided by 255; floats as they are."""
        return self if self.x.is_floating_point() else replace(self, x=self.x.float() / 255)

    def to(self, device: torch.device) -> Examples:
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def scaled(self, size: int | None) -> Examples:
        """The images at size × size pixels, bilinear; None: as they are."""
        if size is None or self.shape[1:] == (size, size):
            return self
        x = functional.interpolate(
            self.x, (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        return replace(self, x=x)

    def standardized(self, mean: Sequence[float], std: Sequence[float]) -> Examples:
        """(x − mean)/std, by channel.

        Raises:
            ConfigurationError: the images have another number of channels.
        """
        if not mean:
            return self
        if len(mean) != self.shape[0]:
            raise ConfigurationError(
                f"task.mean has {len(mean)} figures, the images have {self.shape[0]} channels; "
                "give one for each."
            )
        center = torch.tensor(mean).view(1, -1, 1, 1)
        scale = torch.tensor(std).view(1, -1, 1, 1)
        return replace(self, x=(self.x - center) / scale)

    def split(self) -> tuple[Examples, Examples]:
        """(train, test): TEST_SHARE of every class in test."""
        test = test_rows(kinds(self.y))
        return self.take(np.setdiff1d(np.arange(len(self)), test)), self.take(test)

    def digest(self) -> str:
        """SHA-256 (hex) of images and labels."""
        sha = hashlib.sha256(self.x.contiguous().numpy().tobytes())
        sha.update(self.y.numpy().tobytes())
        return sha.hexdigest()


def kinds(y: Tensor) -> NDArray[np.int64]:
    """By what rows are divided, [n]: their labels; numbers to learn are all of one kind."""
    if y.is_floating_point():
        return np.zeros(len(y), np.int64)
    labels: NDArray[np.int64] = y.numpy()
    return labels


def test_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the test set, sorted, of a set that comes whole: a share of each label [n]."""
    generator = np.random.default_rng(SPLIT_SEED)
    test: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        test.append(rows[: round(TEST_SHARE * len(rows))])
    return np.sort(np.concatenate(test))
