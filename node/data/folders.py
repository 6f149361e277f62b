"""A folder of images: one sub-folder for each of `task.labels`, with folders in it or without.

Pixels are taken by value, as a viewer shows them: turned as EXIF says, what is transparent over
white, the first of several frames. 16-bit grays keep their precision; of 16-bit colors Pillow keeps
the higher byte.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from node.config import TaskSection
from node.data import unused
from node.data.examples import Examples
from node.encoding import composed
from peer.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = NDArray[np.generic]
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
"""Whatever a file's name says, none of Pillow's other readers is asked."""
PIXELS = 64_000_000
"""Width times height of the largest image, 0.2 GB as RGB."""
KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and a value."""


def images(folder: Path, task: TaskSection) -> Examples:
    """All images, as RGB (as gray where `task.channels` is 1), at task.image_size.

    Other files are counted on standard error, and classes without an image named. The sub-folders'
    numbers come from the run file's list, never from what one node happens to have.

    Raises:
        ConfigurationError: `task.labels` or `task.image_size` is missing, or Pillow is.
        DataError: the folder has no images, other sub-folders, or an image that can't be read.
    """
    if not task.labels or task.image_size is None:
        raise ConfigurationError(
            "A folder of images needs task.labels (names of its sub-folders) and task.image_size."
        )
    try:
        files, others = _listed(folder, task.labels)
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read ({error.strerror}); check its permissions."
        ) from None
    if not files:
        raise DataError(f"{folder} has no images in sub-folders named {', '.join(task.labels)}.")
    unused.tell(
        folder,
        others,
        f"images end in {', '.join(sorted(KINDS))} and are below sub-folders of task.labels",
    )
    _remark_on_missing(folder, task.labels, {composed(task.labels[k]) for _, k in files})
    pixels = [_image(path, task.image_size, task.channels) for path, _ in files]
    return Examples(
        torch.from_numpy(_stacked(pixels)),
        torch.tensor([k for _, k in files]),
        {"folder": np.array([_below(folder, path) for path, _ in files], dtype=object)},
    )


def _below(folder: Path, image: Path) -> str:
    """The folder below its class's in which an image lies, such as a person's; empty: in none."""
    _, *inside, _ = image.relative_to(folder).parts
    return inside[0] if inside else ""


def rows(folder: Path, task: TaskSection) -> Iterator[bytes]:
    """The content of each image's file.

    Raises:
        DataError: as `images`.
    """
    for path, _ in _listed(folder, task.labels)[0]:
        try:
            yield path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} can't be read ({error.strerror}).") from None


def _listed(folder: Path, labels: Sequence[str]) -> tuple[list[tuple[Path, int]], list[Path]]:
    """The images with the number of their class, and the files not used.

    Raises:
        DataError: a sub-folder is of no class.
    """
    inside = [
        path
        for path in sorted(folder.iterdir())
        if path.name in labels or not unused.is_clutter(path.name)
    ]
    images: list[tuple[Path, int]] = []
    others = [path for path in inside if path.is_file()]
    classes = {composed(label): k for k, label in enumerate(labels)}
    places = [(classes.get(composed(path.name)), path) for path in inside if path.is_dir()]
    if unknown := [path.name for k, path in places if k is None]:
        raise DataError(f"{folder} has a sub-folder {unknown[0]!r} that is none of task.labels.")
    for k, place in sorted((k, place) for k, place in places if k is not None):
        for path in sorted(_files(place)):
            if path.suffix.lower() in KINDS and not path.is_dir():
                images.append((path, k))
            else:
                others.append(path)
    return images, others


def _remark_on_missing(folder: Path, labels: Sequence[str], present: Collection[str]) -> None:
    """One sentence on standard error, if there are classes without an image: a folder may be
    misplaced.
    """
    if missing := [repr(label) for label in labels if composed(label) not in present]:
        sentence = f"{folder} has no images of {', '.join(missing)} (task.labels)."
        print(f"warning: {sentence}", file=sys.stderr, flush=True)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a class's folder, and links to folders.

    Those are not followed: they may lead in a circle, or to another class.
    """

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not unused.is_clutter(name)]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in (*names, *links) if not unused.is_clutter(name))


def _stacked(pixels: Sequence[Pixels]) -> Pixels:
    """uint8 [n, channels, height, width], or float32 in 0 … 1 where one of them has more than 8
    bits.
    """
    if all(image.dtype == np.uint8 for image in pixels):
        return np.stack(pixels)
    return np.stack([_floats(image) for image in pixels])


def _floats(image: Pixels) -> Pixels:
    """Pixels as float32 in 0 … 1."""
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image


def _image(path: Path, size: int, channels: int) -> Pixels:
    """uint8 [channels, size, size], or float32 in 0 … 1 where its pixels have more than 8 bits."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigurationError(
            "Folders of images need Pillow: pip install 'peerpoise[images]'."
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise DataError(
                    f"{path} has more than {PIXELS // 1_000_000} million pixels; scale it down or "
                    "remove it."
                )
            image.load()
            with suppress(Exception):  # a damaged EXIF costs no picture
                ImageOps.exif_transpose(image, in_place=True)
            deep = image.mode[0] in "IF"
            shown = _deep(path, image) if deep else _over_white(image, channels)
            pixels = np.asarray(shown.resize((size, size)))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than {PIXELS // 1_000_000} million pixels; scale it down or remove "
            "it."
        ) from None
    except Exception:  # SyntaxError, struct.error: Pillow's readers raise anything
        raise DataError(f"{path} can't be read as an image; remove or repair it.") from None
    if deep:  # between pixels a cubic can overshoot
        pixels = np.repeat(pixels[:, :, None], channels, axis=2).clip(0, 1)
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def _over_white(image: Image.Image, channels: int) -> Image.Image:
    """With 8 bits a channel, what is transparent over white."""
    from PIL import Image

    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # Pillow reads 16-bit colors as 8 bits
        image.info["transparency"] = tuple(level >> 8 for level in key)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _deep(path: Path, image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits as floats in 0 … 1: 16 bits over the largest, floats as they are.

    Raises:
        DataError: floats outside of 0 … 1, or 32-bit integers, whose white is nowhere defined.
    """
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.float32)
    if image.mode.startswith("I;16"):
        values /= (1 << tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
    elif image.mode == "I":
        raise DataError(
            f"{path} has 32-bit integers as pixels, whose white is nowhere defined; save it with "
            "16 bits."
        )
    elif not (values >= 0).all() or not (values <= 1).all():
        raise DataError(
            f"{path} has floats outside of 0 … 1 as pixels; scale them to 0 … 1, or save it with "
            "16 bits."
        )
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 1 - values
    if (transparent := image.info.get("transparency")) is not None:
        values[np.asarray(image) == transparent] = 1
    return Image.fromarray(values)
