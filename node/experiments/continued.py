"""`continue`: the file of a second run, which starts where the first ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from node.config import ExperimentConfig, RunConfig, sentence
from node.config.loading import drop_none, layers, merge
from node.encoding import Json
from node.experiments import run_folder
from node.learning.plan import Plan
from node.records import checkpoint
from peer import files
from peer.errors import ConfigurationError, StorageError
from peer.identity.roster import Roster


def write(folder: Path, model: Path, out: Path, settings: Sequence[str]) -> ExperimentConfig:
    """Writes the file OUT.toml of a run with the settings of the one in `folder`, but these, and
    beside it OUT.safetensors, the model that it starts from. What made the first run that very run
    (nonce, federation, digests of its files) is left out, and so is what its algorithm's options
    have by themselves.

    Raises:
        ConfigurationError: a setting is wrong, or OUT does not end in .toml.
        DataError: the model is damaged.
        StorageError: OUT is there already.
    """
    start = out.with_suffix(".safetensors")
    if out.suffix != ".toml":
        raise ConfigurationError(f"{out} does not end in .toml.")
    for path in (out, start):
        if path.exists():
            raise StorageError(f"{path} exists already; choose another --out.")
    run = run_folder.run_of(folder)
    values = _values(run, _names(folder, run), _experiment(folder))
    for _, changes in layers(ExperimentConfig, [], settings, environ={}):
        merge(values, changes)
    merge(values, {"train": {"start": start.name}})
    try:
        config = ExperimentConfig(**drop_none(values))
    except ValidationError as error:
        raise ConfigurationError(sentence(error, ExperimentConfig)) from None
    layout, x = checkpoint.load_model(model)
    checkpoint.save_model(start, layout, x, checkpoint.read_about(model))
    written = config.model_dump(mode="json", exclude_defaults=True)
    if config.task.features:  # whose kind is a default, and has to be named
        written["task"]["features"] = config.task.model_dump(mode="json")["features"]
    files.atomic_write(out, tomli_w.dumps(drop_none(written)).encode())
    return config


def _values(run: RunConfig, names: Sequence[str], experiment: Mapping[str, object]) -> Json:
    """The first run's settings, as a person would have written them."""
    values = run.model_dump(mode="json", exclude_none=True)
    for section, key in (
        ("run", "nonce"),
        ("run", "federation"),
        ("train", "start"),
        ("train", "start_digest"),
        ("train", "public_start"),
        ("validation", "digest"),
    ):
        values[section].pop(key, None)
    values["algorithm"] = {"name": run.algorithm.name, **_chosen(run, names)}
    if isinstance(warmup := values["algorithm"].pop("warmup", None), Mapping):
        # Supervised rounds, which the first run had: what remains is as long as there.
        rounds = run.train.rounds - int(warmup.get("rounds", 0))
        values["train"]["rounds"] = rounds if rounds > 0 else run.train.rounds
    values["experiment"] = dict(experiment)
    return values


def _chosen(run: RunConfig, names: Sequence[str]) -> dict[str, object]:
    """The algorithm's options without those that follow from it, the graph and the rounds, which
    the second run may change.
    """
    neighborhoods = run.neighborhoods(names) if names else {}
    whole = Plan.of(run, neighborhoods).options
    options = dict(run.algorithm.options)
    for name in list(options):
        fewer = {key: value for key, value in options.items() if key != name}
        algorithm = run.algorithm.model_validate({"name": run.algorithm.name, **fewer})
        without = run.model_copy(update={"algorithm": algorithm})
        with suppress(ConfigurationError):  # one that it needs
            if Plan.of(without, neighborhoods).options == whole:
                options = fewer
    return options


def _names(folder: Path, run: RunConfig) -> Sequence[str]:
    """Who took part, where a roster says so."""
    for place in (folder, folder.parent):
        if (place / "roster.json").exists():
            return Roster.load(place / "roster.json", run.run.federation).names
    return ()


def _experiment(folder: Path) -> Mapping[str, object]:
    """The [experiment] of a folder of `up`, `simulate` or `pack`; a host's own has none."""
    file = folder / "partition.json"
    if not file.exists():
        return {}
    section: Json = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in section.items() if key != "histogram"}
