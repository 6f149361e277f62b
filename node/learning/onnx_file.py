"""A learned model as ONNX, for programs that know no torch: `peerpoise export --format onnx`.

What is written is compared with torch on random rows before it is kept, by the reference evaluator
of the onnx package.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from node.learning.use import Model
from node.records.exported import INFO, ModelInfo
from peer import files
from peer.errors import ConfigurationError

ROWS = (1, 2, 7)
"""Sizes of the batches that are compared: one, and others than the one that was traced."""
TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest value: float32 in another order."""
TRACED = 2
"""Rows while the graph is recorded; torch.export would take 1 for a constant."""


class _Served(nn.Module):
    """Rows -> what `Model.predict` gives for them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module, self.target = model.module, model.info.task.target
        assert model.info.input_shape is not None, "see node.learning.use.load"
        self.shape = model.info.input_shape

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(x.reshape(-1, *self.shape))
        if self.target is None:
            return outputs.softmax(1)
        center, scale = self.target
        return outputs[:, 0] * scale + center


def check_installed() -> None:
    """Raises ConfigurationError: the extra is missing."""
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise ConfigurationError(
            "Writing ONNX needs the packages onnx and onnxscript: pip install 'peerpoise[onnx]'."
        )


def write(model: Model, out: Path) -> None:
    """Writes the model with one input, `x` (rows of features [n, inputs], or images [n, channels,
    height, width], as `Model.forward` takes them), and one output: `probabilities` [n, classes], or
    the `number` [n] that a regression learned, in its own unit. n is any number.

    Raises:
        ConfigurationError: the extra is missing, or ONNX computes something else than torch.
        StorageError: the disk refuses.
    """
    check_installed()
    import onnx

    served = _Served(model).eval()
    result = "probabilities" if served.target is None else "number"
    shape = served.shape[-1:] if served.shape[:2] == (1, 1) else served.shape
    with _quiet():
        program = torch.onnx.export(
            served,
            (torch.zeros(TRACED, *shape),),
            dynamo=True,
            verbose=False,
            input_names=["x"],
            output_names=[result],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None, "it is with dynamo"
    proto = program.model_proto
    for key, value in _about(model.info).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    _compare(served, proto.SerializeToString(), shape)
    files.atomic_write(out, [proto.SerializeToString()])


def _about(info: ModelInfo) -> dict[str, str]:
    """What the file says of itself, as `metadata_props`."""
    task = info.task.model_dump(mode="json", exclude_none=True)
    return {
        INFO: info.model_dump_json(),
        "task": info.task.name,
        "features": json.dumps(task["features"]),
        "labels": json.dumps(task["labels"]),
        "privacy": info.privacy,
        "run_id": info.run_id,
    }


def _compare(served: nn.Module, written: bytes, shape: tuple[int, ...]) -> None:
    """Raises ConfigurationError: the file gives other figures than torch."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_from_string(written))
    generator = torch.Generator().manual_seed(0)
    for rows in ROWS:
        x = torch.randn(rows, *shape, generator=generator)
        (given,) = evaluator.run(None, {"x": x.numpy()})
        with torch.no_grad():
            expected = served(x)
        actual = torch.from_numpy(given)
        largest = float(expected.abs().max())
        if actual.shape != expected.shape or not torch.allclose(
            actual, expected, rtol=0, atol=TOLERANCE * max(largest, 1e-6)
        ):
            raise ConfigurationError(
                "This model computes something else as ONNX than in torch, so no file was "
                "written; use the .safetensors file, with peerpoise.load."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
