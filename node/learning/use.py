"""A model that was learned, for use: `peerpoise.load`, and the command `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from node import models
from node.data import columns, features
from node.data.bad_rows import BadRows, first_of
from node.data.tables import ragged
from node.records import checkpoint
from node.records.exported import INFO, ModelInfo
from node.task import views
from peer.errors import ConfigurationError, DataError
from peer.message import Layout

Rows: TypeAlias = Mapping[str, Sequence[object]]
"""Column -> its cells, as a CSV file or a pandas DataFrame has them."""
AT_ONCE = 1024
"""Rows in a forward pass."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of n rows."""

    labels: tuple[str, ...]
    """The likeliest class of each row by its name, or its number; of a regression empty."""
    values: Tensor
    """Probabilities [n, classes]; of a regression the numbers, in their own unit [n]."""


class Model(nn.Module):
    """A model with its weights, in evaluation mode. `module` is the plain torch module."""

    def __init__(self, info: ModelInfo, module: nn.Module) -> None:
        super().__init__()
        self.info, self.module = info, module
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [n, *info.input_shape], or flat [n, inputs] -> logits [n, classes], or the scaled
        number of a regression [n, 1].
        """
        shape = self.info.input_shape
        assert shape is not None, "see load"
        outputs: Tensor = self.module(x.reshape(len(x), *shape))
        return outputs

    def inputs(self, rows: Rows) -> tuple[Tensor, BadRows]:
        """What the columns of a table become, [n, inputs], and the rows in which something is
        wrong, whose inputs are NaN.

        Raises:
            ConfigurationError: the model is no table's.
            DataError: a column is missing.
        """
        task = self.info.task
        names = features.learned(task)
        if not names:
            raise ConfigurationError(
                f"{self.info.run} learned images, not rows of a table; give its inputs as a tensor."
            )
        if missing := [name for name in names if name not in rows]:
            raise DataError(f"The rows lack the column {missing[0]!r}, which the model was fed.")
        cells = {name: [_plain(cell) for cell in rows[name]] for name in names}
        x, bad = features.matrix(cells, task)
        x[list(bad)] = float("nan")  # or a number would be predicted for them
        return torch.from_numpy(x), bad

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """For inputs as `forward` takes them."""
        outputs = torch.cat([self(part) for part in torch.split(x, AT_ONCE)])
        if self.info.task.target is not None:
            center, scale = self.info.task.target
            return Prediction((), outputs[:, 0] * scale + center)
        names = self.info.task.labels or tuple(map(str, range(self.info.task.classes)))
        labels = tuple(names[place] for place in outputs.argmax(1).tolist())
        return Prediction(labels, outputs.softmax(1))


def _plain(cell: object) -> object:
    """None for what pandas writes where nothing is."""
    return None if type(cell).__name__ in ("NAType", "NaTType") else cell


def load(file: str | Path) -> Model:
    """The model that `peerpoise export` wrote to a file.

    Raises:
        ConfigurationError: it is a language model, or of an own task.
        DataError: it is missing, damaged, or no export.
    """
    file = Path(file)
    layout, x = checkpoint.load_model(file)
    about = checkpoint.read_about(file).get(INFO)
    if about is None:
        raise DataError(
            f"{file} says nothing of its task; write it by peerpoise export RUN --out {file.name}."
        )
    try:
        info = ModelInfo.model_validate_json(about)
    except ValidationError:
        raise DataError(f"{file} was exported by another version of peerpoise.") from None
    return of(info, layout, x, file)


def of(info: ModelInfo, layout: Layout, x: Tensor, file: Path) -> Model:
    """The model with these parameters, flat [d], which are from `file`.

    Raises:
        ConfigurationError, DataError: as `load`.
    """
    if info.input_shape is None:
        raise ConfigurationError(
            f"{file} is the model of task {info.task.name!r}. A language model is exported to a "
            "folder, which transformers reads; that of an own task is loaded into your own module: "
            "module.load_state_dict(safetensors.torch.load_file(FILE), strict=False)."
        )
    try:
        module = models.build(info.task, info.input_shape)
        module.load_state_dict(views(layout, x))
    except (RuntimeError, ConfigurationError):
        raise DataError(f"{file} holds other tensors than it says of its model.") from None
    return Model(info, module)


def predict(model: Model, file: Path) -> tuple[Sequence[Sequence[str]], BadRows]:
    """Cells of a table with a header, a row for each row of the file (empty where it is bad), and
    what is wrong with those.

    Raises:
        ConfigurationError, DataError: the file can't be read, or the model is no table's.
    """
    names = features.learned(model.info.task)
    cells: Rows = columns.read(file, names, others=False, ragged=True) if names else {}
    x, bad = model.inputs(cells)
    bad = first_of(ragged(cells[names[0]]), bad)
    made = model.predict(x)
    regression = model.info.task.target is not None
    classes = model.info.task.labels or [str(k) for k in range(model.info.task.classes)]
    header = [model.info.task.label]
    header += [] if regression else [f"p({name})" for name in classes]
    table = [header]
    for row in range(len(x)):
        if row in bad:
            table.append([""] * len(header))
        elif regression:
            table.append([f"{float(made.values[row]):.6g}"])
        else:
            shares = [f"{share:.4f}" for share in made.values[row].tolist()]
            table.append([made.labels[row], *shares])
    return table, bad
