"""A folder of images: one sub-folder for each of `task.labels`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import TaskSection
from node.data.examples import Examples
from peer.errors import ConfigurationError, DataError

KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def images(folder: Path, task: TaskSection) -> Examples:
    """All images, as RGB (as grey where `task.channels` is 1), at task.image_size.

    The sub-folders' numbers come from the run file's list, never from what one node happens to have.

    Raises:
        ConfigurationError: `task.labels` or `task.image_size` is missing, or Pillow is.
        DataError: the folder has no images, other sub-folders, or an image that can't be read.
    """
    if not task.labels or task.image_size is None:
        raise ConfigurationError("A folder of images needs task.labels (names of its sub-folders) and task.image_size.")
    if strangers := sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in task.labels):
        raise DataError(f"{folder} has a sub-folder {strangers[0]!r} that is none of task.labels.")
    found = [(path, k) for k, label in enumerate(task.labels) for path in sorted((folder / label).glob("*"))]
    found = [(path, k) for path, k in found if path.suffix.lower() in KINDS]
    if not found:
        raise DataError(f"{folder} has no images in sub-folders named {', '.join(task.labels)}.")
    x = np.stack([_image(path, task.image_size, task.channels) for path, _ in found])
    return Examples(torch.from_numpy(x), torch.tensor([k for _, k in found]))


def _image(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ConfigurationError("Folders of images need Pillow: pip install 'peerpoise[images]'.") from None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((size, size)))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} can't be read as an image; remove or repair it.") from None
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
