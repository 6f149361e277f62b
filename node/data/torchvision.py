"""Data sets of torchvision, an optional extra, from its folder; nothing is downloaded while a node
runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsInt

import numpy as np
import torch
from numpy.typing import ArrayLike

from node.data.examples import Examples
from node.data.paths import user
from peer.errors import ConfigurationError, DataError, first_line


def torchvision(name: str) -> tuple[Examples, Examples]:
    """(train, test) of torchvision.datasets.NAME, whose class takes root, train and download.

    Some of torchvision's readers unpickle what was downloaded (CIFAR10, after checking its digest).

    Raises:
        ConfigurationError: torchvision is missing, or has no such data set.
        DataError: it was not downloaded, or its images differ in size.
    """
    try:
        from torchvision import datasets
    except Exception as error:  # RuntimeError too: a torchvision that was built for another torch
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigurationError(
            f"The data set torchvision:{name} needs torchvision ({reason}); pip install "
            "'peerpoise[torchvision]'."
        ) from None
    kind = getattr(datasets, name, None)
    if kind is None:
        raise ConfigurationError(
            f"torchvision has no data set {name!r}; see torchvision.datasets for their names."
        )
    root = user()
    if root is None:
        raise ConfigurationError(
            f"The data set torchvision:{name} has no place, without a home; set PEERPOISE_DATA."
        )
    try:
        train, test = (kind(root=str(root), train=train, download=False) for train in (True, False))
        return _read(train), _read(test)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"torchvision can't read {name} in {root} ({first_line(error)}); download it first: "
            f"python -c \"from torchvision.datasets import {name}; {name}('{root}', "
            'download=True)"'
        ) from None


def _read(dataset: Iterable[tuple[ArrayLike, SupportsInt]]) -> Examples:
    images = np.stack([np.asarray(image) for image, _ in dataset])
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels = torch.tensor([int(label) for _, label in dataset])
    return Examples(torch.from_numpy(np.ascontiguousarray(images)), labels)
