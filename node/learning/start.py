"""The model that all nodes start from, where that is a file: `train.start`.

It costs no privacy. A model that was learned from releases is post-processing of them, and they are
in the ledger; so the second run's own releases are all that is added.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from node.config import RunConfig
from node.records.exported import COORDINATES, coordinates
from peer.errors import ConfigurationError, DataError
from peer.message import Layout

R = TypeVar("R", bound=RunConfig)


def sealed(run: R) -> R:
    """The run with the digest of its start written out, if it starts from a file.

    Raises:
        ConfigurationError: the file is another one than its digest says.
        DataError: it can't be read.
    """
    file, written = run.train.start, run.train.start_digest
    if file is None:
        return run
    digest = _digest(file)
    if written not in ("", digest):
        raise ConfigurationError(f"{file} is not the file whose digest train.start_digest is.")
    return run.model_copy(update={"train": run.train.model_copy(update={"start_digest": digest})})


def parameters(run: RunConfig, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The parameters in the file that the run starts from, flat [d].

    Raises:
        DataError: another file than the run's, damaged, or of another model.
    """
    file, written = run.train.start, run.train.start_digest
    assert file is not None
    if _digest(file) != written != "":
        raise DataError(
            f"{file} is not the model that this run starts from; copy the file that pack wrote."
        )
    x = torch.empty(layout.size, dtype=dtype)
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {
                name: tuple(tensors.get_slice(name).get_shape())
                for name in tensors.keys()  # noqa: SIM118 (it has no iterator)
            }
            _check_shapes(file, shapes, layout)
            if (tensors.metadata() or {}).get(COORDINATES, "") != coordinates(run):
                raise DataError(
                    f"train.start: {file} is a model of other inputs than this run's: task.whiten "
                    "and its validation set have to be those of the run that learned it."
                )
            for name, _, place in layout.slices():
                x[place] = tensors.get_tensor(name).reshape(-1)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"train.start: {file} is no model, or damaged: {error}.") from None
    if not bool(x.isfinite().all()):
        raise DataError(f"train.start: {file} has values that are not finite.")
    return x


def _check_shapes(file: Path, shapes: dict[str, tuple[int, ...]], layout: Layout) -> None:
    """Raises DataError: it is a model with other tensors."""
    wanted = {name: tuple(shape) for name, shape in layout.fields}
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            has, wants = (
                f"shape {list(each[name])}" if name in each else "nothing"
                for each in (shapes, wanted)
            )
            raise DataError(
                f"train.start: {file} is another model than this run's: as {name} it has {has}, "
                f"and the run's model {wants}."
            )


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"train.start: {file} can't be read: {error.strerror}.") from None
