"""numpy's files: images and labels in an .npz, row numbers in an .npy; and the digits of
scikit-learn.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.data.examples import FLOATS, INTEGERS, Examples
from node.packing import refuse_bomb
from peer.errors import ConfigurationError, DataError, first_line

DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    RuntimeError,
    MemoryError,
)
"""What numpy and zipfile raise on a file that is cut, damaged, encrypted, or holds Python
objects.
"""

AT_ONCE = 1024
"""Images that are read together where all of them are not needed at once."""
CHANNELS = (1, 3, 4)
"""Gray, colors, and with transparency."""


def digits() -> tuple[Examples, Examples]:
    """1,797 handwritten digits of 8×8 pixels in [0, 1] from scikit-learn: (train, test), balanced
    over the classes.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    library = find_spec("sklearn")
    origin = library.origin if library else None
    # Importing scikit-learn takes longer than all else of a short command.
    source = Path(origin).parent / "datasets" / "data" / "digits.csv.gz" if origin else None
    if source is None or not source.is_file():
        raise ConfigurationError(
            "The data set digits comes with scikit-learn, which is missing: pip install "
            "'peerpoise[demo]'."
        )
    rows = np.loadtxt(source, delimiter=",", dtype=np.float32)
    x = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 8, 8) / 16)
    y = torch.from_numpy(rows[:, -1].astype(np.int64))
    return Examples(x, y).split()


def npz(path: Path, classes: int) -> Examples:
    """An .npz with x [n, height, width] or [n, channels, height, width] (uint8 is divided by 255
    later) and y [n] (integers 0 … classes − 1); further arrays [n] are columns. Nothing in it is
    ever unpickled.

    Raises:
        DataError: one sentence that says what is wrong with the file.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise DataError(f"{path} is a single array; an .npz with the arrays x and y is expected.")
    if missing := {"x", "y"} - set(arrays):
        raise DataError(
            f"{path} has no array {' nor '.join(sorted(missing))}; an .npz with x and y is "
            "expected."
        )
    x, y = arrays["x"], arrays["y"]
    columns = {
        name: it
        for name, it in arrays.items()
        if name not in ("x", "y") and it.shape == x.shape[:1]
    }
    values = INTEGERS if x.dtype == np.uint8 else FLOATS
    return Examples(_images(path, x), _labels(path, y, len(x), classes), columns, values)


def inputs(path: Path) -> Iterator[NDArray[np.float32]]:
    """The x of an .npz some images at a time, [few, …], as `npz` gives them: uint8 over 255.

    Raises:
        DataError: it can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = header(stream)
            if not by_columns:
                size = dtype.itemsize * math.prod(shape[1:])
                while content := stream.read(size * AT_ONCE):
                    yield _floats(np.frombuffer(content, dtype).reshape(-1, *shape[1:]))
                return
    except DAMAGE as error:
        raise DataError(f"{path} can't be read as numpy data: {first_line(error)}.") from None
    loaded = _load(path)
    assert isinstance(loaded, dict)
    yield _floats(loaded["x"])


def rows(path: Path, limit: int) -> NDArray[np.int64]:
    """A node's row numbers of a bundled data set with `limit` training rows, from an .npy.

    Raises:
        DataError: the file is missing, damaged, empty, or names rows twice or outside 0 … limit −
            1.
    """
    numbers = _load(path)
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{path} is no one-dimensional .npy of row numbers; write it again with peerpoise up."
        )
    if len(numbers) == 0:
        raise DataError(f"{path} names no rows: this node would have nothing to learn from.")
    if numbers.min() < 0 or numbers.max() >= limit:
        raise DataError(
            f"{path} names rows outside 0 … {limit - 1}; it belongs to another data set."
        )
    if len(np.unique(numbers)) != len(numbers):
        raise DataError(
            f"{path} names a row twice; one example counted twice would cost twice the privacy."
        )
    return numbers.astype(np.int64)


def _load(path: Path) -> NDArray[np.generic] | dict[str, NDArray[np.generic]]:
    """The array of an .npy, or the arrays of an .npz."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            refuse_bomb(
                path.stat().st_size, sum(member.file_size for member in loaded.zip.infolist())
            )
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise DataError(
            f"There is no data file {path}; check task.path in run.toml, or data.path in node.toml."
        ) from None
    except DAMAGE as error:
        reason = error.strerror or "" if isinstance(error, OSError) else str(error)
        text = (reason.splitlines() or [type(error).__name__])[0].rstrip(".")
        text = (
            "it holds Python objects, which are never unpickled; save numbers"
            if "pickle" in text
            else text
        )
        raise DataError(f"{path} can't be read as numpy data: {text}.") from None


def _images(path: Path, x: NDArray[np.generic]) -> Tensor:
    if x.dtype.kind not in "fu" or (x.dtype.kind == "u" and x.dtype != np.uint8):
        raise DataError(f"{path}: x has type {x.dtype}; floats or uint8 are expected.")
    if x.ndim not in (3, 4):
        raise DataError(
            f"{path}: x has shape {x.shape}; [n, height, width] or [n, channels, height, width] is "
            "expected."
        )
    if x.size == 0:
        raise DataError(f"{path} is empty: x has shape {x.shape}.")
    if _channels_last(x.shape):
        raise DataError(
            f"{path}: x has shape {x.shape}, which looks like channels last; [n, channels, height, "
            "width] is expected: save np.moveaxis(x, -1, 1)."
        )
    if x.dtype == np.uint8 and x.max() == 1:
        raise DataError(
            f"{path}: x is uint8 (0 … 255), but nothing in it is above 1; save it as floats."
        )
    values = _floats(x)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: x holds values that are not finite (nan, inf or beyond float32).")
    return torch.from_numpy(values if x.ndim == 4 else values[:, None])


def _floats(x: NDArray[np.generic]) -> NDArray[np.float32]:
    """float32; uint8 over 255."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Images that end with 1, 3 or 4 channels, as most viewers want them. [n, channels, 1, 1] are
    none.
    """
    return (
        len(shape) == 4
        and shape[3] in CHANNELS
        and shape[1] not in CHANNELS
        and shape[2:] != (1, 1)
    )


def _labels(path: Path, y: NDArray[np.generic], n: int, classes: int) -> Tensor:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(
            f"{path}: y has shape {y.shape} and type {y.dtype}; one integer per image is expected."
        )
    if len(y) != n:
        raise DataError(f"{path}: x has {n} images but y has {len(y)} labels.")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(
            f"{path}: labels go from {y.min()} to {y.max()}; 0 … {classes - 1} is expected "
            "(task.classes)."
        )
    return torch.from_numpy(y.astype(np.int64))
