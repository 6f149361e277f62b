"""What lies in a run folder after a run: models, summaries; `export`, `eval` and the merging of
`up`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from node.config import NodeConfig, RunConfig, load
from node.maths.mixing import BLOCK
from node.records import checkpoint, summary
from node.records.checkpoint import MODEL
from node.records.exported import (
    CARD_MARK,
    INFO,
    INPUT_SHAPE,
    ModelInfo,
    Shape,
    card,
    metrics_of,
    privacy_sentence,
)
from node.records.summary import Summary
from node.task import Task, flat, views
from peer import files
from peer.errors import ConfigurationError, DataError, PeerpoiseError, StorageError
from peer.message import Layout

Form: TypeAlias = Literal["safetensors", "onnx", "folder"]
_FORMS: Mapping[str, Form] = {".safetensors": "safetensors", ".onnx": "onnx"}


def model_file(run: Path, node: str | None, average: bool) -> Path:
    """RUN/nodes/NODE/model.safetensors, or RUN/model.safetensors: the average (of a daemon's own
    folder: its model).

    Raises:
        ConfigurationError: both were asked for.
        DataError: there is no such folder or model.
    """
    if node is not None and average:
        raise ConfigurationError("Choose either --node or --average.")
    if not run.is_dir():
        raise DataError(f"There is no run folder {run}; look into runs/.")
    file = run / MODEL if node is None else run / "nodes" / node / MODEL
    if not file.exists():
        known = sorted(path.parent.name for path in run.glob(f"nodes/*/{MODEL}"))
        raise DataError(
            f"There is no model {file}"
            + (f"; nodes with a model: {', '.join(known)}." if known else ".")
        )
    return file


def export(run: Path, model: Path, out: Path, form: Form | None = None) -> tuple[str, Path | None]:
    """Copies a model, after checking that it is one; returns the digest of its parameters, and the
    model card if one was written beside it. OUT.safetensors has what was learned, OUT.onnx a graph
    that computes it; any other name is a folder as transformers reads it, with all of a language
    model. `form` is the name's, if it is not given.

    Raises:
        ConfigurationError: a form that the model can't have, or whose extra is missing.
        DataError: the model is damaged, or belongs to another task.
        StorageError: there is another file where the card would be.
    """
    layout, x = checkpoint.load_model(model)
    form = form or _FORMS.get(out.suffix, "folder")
    if form != "folder":
        info = _info(run, model)
        if info is not None and info.rounds_run == 0:
            raise DataError(
                f"{run} has run none of its {info.rounds} rounds, so its model is the one that it "
                "began with; export another host's."
            )
        beside = None if info is None else _place_of_card(out)
        if info is not None and info.task.whiten is not None:
            info, layout, x = _of_images(run, info, layout, x)
        if form == "onnx":
            _write_onnx(run, info, layout, x, out)
        else:
            about = {} if info is None else {INFO: info.model_dump_json()}
            checkpoint.save_model(out, layout, x, about)
        if info is not None and beside is not None:
            files.atomic_write(beside, [card(info, out.name).encode()])
        return summary.digest(x), beside
    from node.tasks import exporter

    config, _ = _run_and_data(run)
    if (written := exporter(config)) is None:
        raise ConfigurationError(
            f"{out} does not end in .safetensors or .onnx; only a language model is written as a "
            "folder."
        )
    written(config, layout, x, out)
    return summary.digest(x), None


def _of_images(
    run: Path, info: ModelInfo, layout: Layout, x: Tensor
) -> tuple[ModelInfo, Layout, Tensor]:
    """The model of whitened images as one of images: its first layer is linear, as their map is.

    Raises:
        ConfigurationError, DataError: the public images are not here.
    """
    from node.tasks import sets

    whitening, shape = sets.whitening(*_run_and_data(run))
    parameters = dict(views(layout, x))
    (weight, _), (bias, _) = layout.fields[:2]
    parameters[weight], parameters[bias] = whitening.folded(parameters[weight], parameters[bias])
    task = info.task.model_copy(update={"whiten": None})
    layout = Layout(tuple((name, tuple(value.shape)) for name, value in parameters.items()))
    info = info.model_copy(update={"task": task, "input_shape": shape})
    return info, layout, flat(layout, parameters)


def _write_onnx(run: Path, info: ModelInfo | None, layout: Layout, x: Tensor, out: Path) -> None:
    from node.learning import onnx_file, use

    onnx_file.check_installed()
    if info is None:
        raise DataError(
            f"{run} has no run.toml and summary.json, which say what its model is fed; export it "
            "once its run has ended."
        )
    onnx_file.write(use.of(info, layout, x, run / MODEL), out)


def _place_of_card(out: Path) -> Path:
    """Beside the export.

    Raises:
        StorageError: somebody else's file is there.
    """
    beside = out.with_suffix(".md")
    try:
        known = not beside.exists() or CARD_MARK in beside.read_text(encoding="utf-8")
    except (OSError, ValueError):
        known = False
    if not known:
        raise StorageError(
            f"{beside} exists and is no model card that export wrote; move it, or choose another "
            "--out."
        )
    return beside


def _info(run: Path, model: Path) -> ModelInfo | None:
    """What is known of a run's model; None: the folder has no summary yet, or no run.toml."""
    try:
        result, (config, _) = summary.read(run / "summary.json"), _run_and_data(run)
    except PeerpoiseError:
        return None
    parent = model.parent.name if model.parent.parent.name == "nodes" else None
    alone = next(iter(result.params_digest)) if result.nodes > len(result.params_digest) else None
    whose = parent or alone
    path = config.task.path  # of a public file: its name says enough
    task = config.task.model_copy(update={"path": path and Path(path.name)})
    return ModelInfo(
        version=result.version,
        run=config.run.name,
        run_id=config.run_id,
        node=whose,
        nodes=result.nodes,
        algorithm=result.algorithm,
        rounds=result.rounds,
        rounds_run=_rounds_run(result, whose),
        task=task,
        input_shape=_input_shape(model),
        metrics=metrics_of(result, whose) if result.test_public else {},
        privacy=privacy_sentence(result.privacy),
    )


def _rounds_run(result: Summary, whose: str | None) -> int | None:
    """Of a node, or the fewest of all."""
    of = result.rounds_run
    return of.get(whose) if whose else min(of.values(), default=None)


def _input_shape(model: Path) -> Shape | None:
    text = checkpoint.read_about(model).get(INPUT_SHAPE)
    if text is None:
        return None
    channels, height, width = json.loads(text)
    return channels, height, width


def evaluate(run: Path, model: Path) -> dict[str, float]:
    """Public test metrics of a model, on the test set the run names.

    Raises:
        ConfigurationError: the folder has no run.toml, or its data set has no public test set here.
        DataError: the model belongs to another task.
    """
    layout, x = checkpoint.load_model(model)
    metrics = _task(run, model, layout).evaluate(x)
    if not metrics:
        raise ConfigurationError(
            "There is no public test set: name one as data.test in the node's file."
        )
    return metrics


def _task(run: Path, model: Path, layout: Layout) -> Task:
    """The run's task, for a model of this layout."""
    from node.tasks import make

    task = make(*_run_and_data(run))
    if layout.digest != task.layout.digest:
        raise DataError(f"{model} has other tensors than the model of {run / 'run.toml'}.")
    return task


def run_of(folder: Path) -> RunConfig:
    """The run of a folder of `up`, `simulate` or `pack`, or of a daemon's own."""
    places = (folder / "run.toml", folder.parent / "run.toml")
    file = next((place for place in places if place.exists()), places[0])
    return load(RunConfig, [file], environ={})


def _run_and_data(run: Path) -> tuple[RunConfig, Any]:
    """The run of a folder of `up` or `simulate`, or of a daemon's own (its node.toml is there or
    one above).
    """
    for place in (run, run.parent):
        if (place / "node.toml").exists():
            node = load(NodeConfig, [place / "node.toml"])
            paths = {
                key: _under(place, getattr(node.data, key))
                for key in ("path", "test", "rows", "validation")
            }
            config = load(RunConfig, [_under(place, node.run) or node.run])
            node.check_task(config.task)
            return config, node.data.model_copy(update=paths)
    import numpy as np

    return load(RunConfig, [run / "run.toml"]), np.arange(1)


def _under(folder: Path, path: Path | None) -> Path | None:
    return path and folder / path.expanduser()


def merge(run: Path, homes: Mapping[str, Path]) -> Summary | None:
    """Writes RUN/summary.json and RUN/model.safetensors (the average of the honest nodes) from what
    nodes left; None: they left none. A node that diverged leaves no model."""
    done = [home for home in homes.values() if (home / "summary.json").exists()]
    if not done:
        return None
    models = {
        home.name: checkpoint.load_model(home / MODEL) for home in done if (home / MODEL).exists()
    }
    parameters = {name: x for name, (_, x) in models.items()}
    merged = summary.merge([summary.read(home / "summary.json") for home in done], parameters)
    tested: Mapping[str, float] = {}
    if honest := {name: model for name, model in models.items() if name not in merged.attackers}:
        first, (layout, _) = next(iter(honest.items()))
        about = checkpoint.read_about(homes[first] / MODEL)
        average = save_average(run / MODEL, honest, about)
        if run_of(run).task.data != "own":  # each node has a test set of its own then
            tested = metrics_of_average(lambda: _task(run, run / MODEL, layout).evaluate(average))
    return with_average(run, merged, tested)


def metrics_of_average(evaluate: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """Test metrics of the averaged model; a failure costs them, not the summary."""
    try:
        return evaluate()
    except PeerpoiseError as error:
        print(f"warning: The averaged model is not tested: {error}", file=sys.stderr)
        return {}


def with_average(run: Path, merged: Summary, tested: Mapping[str, float]) -> Summary:
    """The summary with the test metrics of the averaged model, as it is written to
    RUN/summary.json.
    """
    if tested:
        figures = {**merged.algorithm_metrics, "averaged_model": dict(tested)}
        merged = merged.model_copy(update={"algorithm_metrics": figures})
    summary.write(run / "summary.json", merged)
    return merged


def save_average(
    file: Path, models: Mapping[str, tuple[Layout, Tensor]], about: Mapping[str, str]
) -> Tensor:
    """Writes and returns x̄, the mean of these nodes' parameters, flat float32 [d]; in float64, in
    sorted order. `about` as for `save_model`.
    """
    layout = next(iter(models.values()))[0]
    average = torch.empty(layout.size)
    for start in range(0, layout.size, BLOCK):
        here = slice(start, start + BLOCK)
        average[here] = torch.stack(
            [models[name][1][here].double() for name in sorted(models)]
        ).mean(0)
    checkpoint.save_model(file, layout, average, about)
    return average


def partition_histogram(run: Path) -> dict[str, Sequence[int]]:
    histogram: dict[str, Sequence[int]] = json.loads(
        (run / "partition.json").read_text(encoding="utf-8")
    )["histogram"]
    return histogram
