"""Checkpoints and models as safetensors files. No pickle, and never a random generator's state or
noise.

A checkpoint holds an algorithm's `state`: a dataclass of tensors, numbers, strings, None, and
tuples and dicts of those. Tensors go to safetensors tensors, everything else and the shape of it
all to the file's JSON metadata, with a SHA-256 over both. Each file is whole or absent; the last
two are kept.

Files are written piece by piece from where tensors lie. safetensors' `save_file` would want the
whole model in float32 first, twice what it takes in bfloat16, and no tensors that share memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from node.task import flat, views
from peer import files
from peer.errors import DataError
from peer.message import Layout

S = TypeVar("S")
MODEL = "model.safetensors"
"""The file of a trained model in a run's folder."""
KEPT = 2
"""Checkpoints kept: the newest, and the one before in case the newest is damaged."""
NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
PIECE = 1 << 18
"""Elements that are hashed or written at a time, 1 MiB of float32."""
DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a file can hold, and its name there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Generic[S]):
    """The state after `round` (0 is the first), and what was noted beside it."""

    round: int
    state: S
    extra: Mapping[str, str]


class IncompatibleState(ValueError):
    """The file is whole, but its state has other fields."""


def save(folder: Path, round: int, state: Any, extra: Mapping[str, str] | None = None) -> Path:
    """Writes checkpoint-<round>.safetensors durably and forgets all but the last two. `extra`: e.g.
    the run's id. The tensors are read where they lie: nobody may write to them meanwhile.

    Raises:
        StorageError: the disk is full or refuses; older checkpoints are untouched.
        TypeError: the state holds something that has no place in a checkpoint (a bug).
    """
    tensors: dict[str, Tensor] = {}
    tree = {
        field.name: _pack(getattr(state, field.name), field.name, tensors)
        for field in fields(state)
    }
    about = json.dumps({"round": round, "state": tree, "extra": dict(extra or {})}, sort_keys=True)
    metadata = {"peerpoise": about, "sha256": _digest(about, tensors)}
    path = folder / f"checkpoint-{round}.safetensors"
    files.atomic_write(path, _written(tensors, metadata), point="checkpoint")
    _forget(folder, path)
    return path


def latest(
    folder: Path, kind: type[S], warn: Callable[[str], None] = lambda text: None
) -> Checkpoint[S] | None:
    """The newest checkpoint that is whole, its state as `kind`; None: there is none. `warn` gets a
    sentence for every file that was passed over: damaged, or with another state."""
    for path in _newest_first(folder):
        try:
            return _read(path, kind)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            what = (
                "of another version or algorithm"
                if isinstance(error, IncompatibleState)
                else "damaged"
            )
            warn(
                f"The checkpoint {path.name} is {what} ({error}); the one before it is used, "
                "if there is one."
            )
    return None


def save_model(
    path: Path, layout: Layout, x: Tensor, about: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes the flat parameters x [d] as named float32 tensors, for any program that reads
    safetensors. `about`: what is kept beside them, by `read_about`.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    tensors = views(layout, x.detach().cpu())
    metadata = {**about, "layout": json.dumps([name for name, _ in layout.fields])}
    files.atomic_write(path, _written(tensors, metadata, torch.float32), point="model")


def read_about(path: Path) -> dict[str, str]:
    """What `save_model` was given to keep beside the parameters of a model that can be loaded."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = dict(file.metadata() or {})
    return {name: value for name, value in metadata.items() if name != "layout"}


def load_model(path: Path) -> tuple[Layout, Tensor]:
    """The layout and the flat float32 parameters [d] of a file that `save_model` wrote.

    Raises:
        DataError: the file is missing, damaged, or not one of ours.
    """
    try:
        metadata, tensors = _open(path)
        layout = Layout(
            tuple((name, tuple(tensors[name].shape)) for name in json.loads(metadata["layout"]))
        )
        return layout, flat(layout, tensors)
    except FileNotFoundError:
        raise DataError(f"There is no model {path}.") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no model of peerpoise, or damaged: {error}.") from None


def _pack(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """The value as JSON; tensors are put aside under their place and leave its name."""
    match value:
        case Tensor() if value.dtype in DTYPES:
            tensors[place] = value.detach().cpu().contiguous()
            return {"tensor": place}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return {
                "tuple": [_pack(inner, f"{place}.{k}", tensors) for k, inner in enumerate(value)]
            }
        case dict() if all(isinstance(key, str) for key in value):
            return {
                "dict": {
                    key: _pack(inner, f"{place}.{key}", tensors) for key, inner in value.items()
                }
            }
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(f"a checkpoint can't hold {kind} at {place}")


def _unpack(value: object, tensors: Mapping[str, Tensor]) -> object:
    match value:
        case {"tensor": str(place)}:
            return tensors[place]
        case {"tuple": list(inner)}:
            return tuple(_unpack(each, tensors) for each in inner)
        case {"dict": dict(inner)}:
            return {key: _unpack(each, tensors) for key, each in inner.items()}
    return value


def _read(path: Path, kind: type[S]) -> Checkpoint[S]:
    metadata, tensors = _open(path)
    if metadata["sha256"] != _digest(metadata["peerpoise"], tensors):
        raise ValueError("its digest is wrong")
    about = json.loads(metadata["peerpoise"])
    state = {name: _unpack(value, tensors) for name, value in about["state"].items()}
    try:
        return Checkpoint(round=about["round"], state=kind(**state), extra=about["extra"])
    except TypeError as error:
        raise IncompatibleState(str(error)) from None


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {}), {
            name: file.get_tensor(name).clone()
            for name in file.keys()  # noqa: SIM118 (it has no iterator)
        }


def _written(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> Iterator[bytes | memoryview]:
    """The safetensors file of these dense tensors, piece by piece; in this type, or their own."""
    types = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    order = sorted(
        tensors, key=lambda name: (-types[name].itemsize, name)
    )  # so that all lie aligned
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * types[name].itemsize
        shape = tuple(tensors[name].shape)
        header[name] = {"dtype": DTYPES[types[name]], "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield from _pieces(tensors[name], types[name])


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of a dense tensor in that type."""
    for piece in torch.split(tensor.reshape(-1), PIECE):
        yield piece.to(dtype).view(torch.uint8).numpy().data


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        for piece in _pieces(tensor, tensor.dtype):
            digest.update(piece)
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    numbered = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def _forget(folder: Path, newest: Path) -> None:
    for path in [path for path in _newest_first(folder) if path != newest][KEPT - 1 :]:
        path.unlink(missing_ok=True)
