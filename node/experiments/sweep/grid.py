"""The sweep file: an experiment, and in `[sweep]` what varies. Rows (a method in a setting) and
their cells.

    [sweep]
    algorithms = ["dpdl", "xavg"]                       # methods by the algorithm's name
    seeds = [1, 2, 3]                                   # train.seed and experiment.seed
    rates = [0.01, 0.1]                                 # algorithm.lr; each a row of its own, or
    tuning_seed = 100               # the best one is chosen on this seed and held-out training data
    [sweep.methods."dmsgd, median"]                     # methods that take more than a name
    algorithm.name = "dmsgd"
    mix.rule = "median"
    [sweep.settings.ring]                               # named differences from the experiment
    topology.kind = "ring"
    [sweep.grid]                               # every combination of these values, in every setting
    "experiment.alpha" = [0.1, 0.25]

What is more particular wins: the experiment < a setting < its grid values < a method < environment
and --set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from node.config import (
    ExperimentConfig,
    RunName,
    Section,
    drop_none,
    edges,
    layers,
    merge,
    nested,
    sentence,
    take_beside,
    without_folders,
)
from node.encoding import Json
from peer.errors import ConfigurationError

LATE = 5
"""Last evaluations whose mean is a run's result: the last alone swings."""
QUICK_ROUNDS = 10
OWN = ("title", "rates", "methods")
"""Keys of a setting or method that are the sweep's own, not the experiment's."""

Values = Json
Rate = Annotated[float, Field(gt=0)]


class Difference(Section):
    """A setting or a method: `OWN` keys; every other is a section of the experiment."""

    title: str = ""
    rates: tuple[Rate, ...] = ()
    """Instead of the sweep's."""
    methods: tuple[str, ...] = ()
    """Of a setting: only these are compared in it; the others count as not run."""
    values: Values = {}


class SweepSection(Section):
    name: RunName = "sweep"
    """For people, and what a folder of results belongs to."""
    title: str = ""
    base: str = ""
    """An experiment file that this one changes; relative to this file."""
    algorithms: tuple[str, ...] = ()
    """Methods that need no more than the algorithm's name."""
    methods: dict[str, Values] = {}
    """name = sections of the experiment; without algorithm.name the name is the algorithm's."""
    settings: dict[str, Values] = {}
    """name = sections of the experiment, and: title; methods, of which only these are run;
    rates.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    """"section.key" = values; every setting is run with every combination."""
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Each sets train.seed and experiment.seed: parameters, batches without noise, and the
    partition.
    """
    rates: tuple[Rate, ...] = ()
    """Learning rates (algorithm.lr). Empty: the experiment's."""
    tuning_seed: int | None = None
    """With it a method's rate is the one with the best accuracy on held-out TRAINING data on this
    seed.
    """
    target_loss: float | None = Field(default=None, gt=0)
    """Tables say after how many rounds the nodes' mean test loss is this low."""
    late: int = Field(default=LATE, ge=1)
    """A run's result is the mean over so many last evaluations."""

    @model_validator(mode="after")
    def _sound(self) -> SweepSection:
        for what, values in (
            ("seeds", self.seeds),
            ("rates", self.rates),
            ("algorithms", self.algorithms),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} names a value twice")
        if self.tuning_seed is not None and self.tuning_seed in self.seeds:
            raise ValueError(
                f"tuning_seed {self.tuning_seed} is one of the seeds; tuning needs a seed of "
                "its own"
            )
        if twice := set(self.algorithms) & set(self.methods):
            raise ValueError(f"{min(twice)!r} stands in algorithms and in methods; keep one")
        for key, values in self.grid.items():
            if "." not in key or not all(key.split(".")):
                raise ValueError(f'grid key {key!r} is not of the form "section.key"')
            if not values:
                raise ValueError(f"grid.{key} has no values; give at least one, or remove it")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One experiment of a sweep."""

    setting: str
    method: str
    lr: float | None
    seed: int
    tuning: bool
    config: ExperimentConfig
    configuration: Values = field(repr=False)
    """All of it, as JSON has it."""
    digest: str
    """SHA-256 (hex) of it."""

    @property
    def work(self) -> float:
        """In rounds of a node: what the progress bar counts."""
        return self.config.train.rounds * self.config.experiment.nodes

    @property
    def label(self) -> str:
        lr = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.setting}, {self.method}{lr}, seed {self.seed}" + (
            " (tuning)" if self.tuning else ""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method in a setting: a line of a table."""

    setting: str
    method: str
    label: str
    """How tables name it: the method, with its rate where each rate is a row."""
    rates: tuple[float | None, ...]
    """More than one: they are tuned."""
    seeds: tuple[int, ...]
    tuning_seed: int | None
    values: Values = field(repr=False)
    """The experiment's, without seed and rate."""
    files: tuple[Path, ...] = ()

    @property
    def tuned(self) -> bool:
        return len(self.rates) > 1

    def tuning(self) -> Iterator[Trial]:
        """A run per rate on held-out training data; none where there is nothing to choose."""
        for lr in self.rates if self.tuned else ():
            assert self.tuning_seed is not None
            yield self.trial(lr, self.tuning_seed, tuning=True)

    def final(self, lr: float | None) -> Iterator[Trial]:
        """A run per seed with the chosen rate."""
        for seed in self.seeds:
            yield self.trial(lr, seed, tuning=False)

    def trial(self, lr: float | None, seed: int, *, tuning: bool) -> Trial:
        """Raises ConfigurationError: a sentence that names the row."""
        values = deepcopy(self.values)
        merge(values, {"train": {"seed": seed}, "experiment": {"seed": seed}})
        if lr is not None:
            merge(values, {"algorithm": {"lr": lr}})
        if tuning:
            merge(values, {"task": {"held_out": True}})
        where = f" (setting {self.setting}, method {self.method})"
        config = experiment(values, self.files, where)
        _check_algorithm(config.algorithm.name, self.files, where)
        file, written = config.train.start, config.train.start_digest
        if file and (file.exists() or not written):  # with a digest only who runs it needs the file
            from node.learning import start  # has torch

            config = start.sealed(config)
        configuration = config.model_dump(mode="json")
        return Trial(
            setting=self.setting,
            method=self.method,
            lr=lr,
            seed=seed,
            tuning=tuning,
            config=config,
            configuration=configuration,
            digest=digest(configuration),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    section: SweepSection
    source: Values
    """What the file says; `set`: environment and --set. Kept beside the results."""
    rows: tuple[Row, ...]
    titles: Mapping[str, str]
    """Setting -> how tables name it; in order."""

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def title(self) -> str:
        return self.section.title or self.section.name

    @property
    def size(self) -> int:
        """Cells of the whole sweep."""
        return sum((len(row.rates) if row.tuned else 0) + len(row.seeds) for row in self.rows)

    def only(self, words: Sequence[str]) -> Sweep:
        """The rows whose setting or method is one of these; a word SETTING/METHOD is a row.

        Raises:
            ConfigurationError: a word fits nothing.
        """
        if not words:
            return self

        def fits(row: Row, word: str) -> bool:
            return word in (row.setting, row.method, row.label, f"{row.setting}/{row.method}")

        for word in words:
            if not any(fits(row, word) for row in self.rows):
                known = ", ".join([*self.titles, *dict.fromkeys(row.method for row in self.rows)])
                raise ConfigurationError(
                    f"--only {word}: there is no such setting or method; choose of {known}."
                )
        kept = tuple(row for row in self.rows if any(fits(row, word) for word in words))
        titles = {
            name: title
            for name, title in self.titles.items()
            if any(row.setting == name for row in kept)
        }
        return Sweep(section=self.section, source=self.source, rows=kept, titles=titles)


def load(file: Path, settings: Sequence[str] = (), *, quick: bool = False) -> Sweep:
    """Reads a sweep file. quick: ten rounds, two rates, one seed; does it run?

    Raises:
        ConfigurationError: one sentence.
    """
    (_, source), *over = layers(ExperimentConfig, [file], settings)
    if not isinstance(source.get("sweep"), dict):
        raise ConfigurationError(
            f"{file} has no [sweep] section, so there is nothing to vary; peerpoise show sweeps."
        )
    source["sweep"] = {"name": file.stem, **source["sweep"]}
    top: Values = {}
    for _, values in over:
        merge(top, values)
    merge(source["sweep"], top.pop("sweep", {}))
    if base := source["sweep"].pop("base", None):
        [(_, beneath)] = layers(ExperimentConfig, [file.parent / str(base)], (), {})
        _take_in(beneath, (file.parent / str(base)).parent)
        merge(beneath, source)
        source = beneath
    source |= {"set": top, "quick": quick}
    changes = [
        it for key in ("settings", "methods") for it in dict(source["sweep"].get(key, {})).values()
    ]
    _take_in(top, Path())
    for values in (source, *(it for it in changes if isinstance(it, dict))):
        _take_in(values, file.parent)
    return read(source, file)


def _take_in(values: Values, folder: Path) -> None:
    """Where the files lie that these values name, and what an edge list says."""
    take_beside(values, folder)
    edges.inline(values)


def read(source: Values, file: Path) -> Sweep:
    """The sweep of what `load` kept: a file's values, and `set`, which wins over everything. `file`
    is for sentences.

    Raises:
        ConfigurationError: one sentence.
    """
    values = deepcopy(source)
    section = _section(values.pop("sweep"), file)
    top, quick = values.pop("set"), values.pop("quick")
    methods = _methods(section, values, file)
    rows: list[Row] = []
    titles: dict[str, str] = {}
    for name, title, setting in _settings(section, file):
        titles[name] = title
        for method in setting.methods or methods:
            if method not in methods:
                raise ConfigurationError(
                    f"{file}: sweep.settings.{name}.methods: there is no method {method!r}; "
                    "add it to sweep.algorithms."
                )
            own = deepcopy(values)
            short = {"train": {"rounds": QUICK_ROUNDS}} if quick else {}
            for change in (setting.values, methods[method].values, short, top):
                merge(own, deepcopy(change))
            rates: tuple[float | None, ...] = (
                methods[method].rates or setting.rates or section.rates or (None,)
            )
            if quick:
                middle = max(len(rates) // 2 - 1, 0)
                rates = rates[middle : middle + 2]
            row = Row(
                setting=name,
                method=method,
                label=method,
                rates=rates,
                seeds=section.seeds[:1] if quick else section.seeds,
                tuning_seed=section.tuning_seed,
                values=own,
                files=(file,),
            )
            if section.tuning_seed is not None or len(rates) == 1:
                rows.append(row)
            else:
                rows += [
                    replace(row, rates=(rate,), label=f"{method}, lr {rate:g}") for rate in rates
                ]
    return Sweep(section=section, source=source, rows=tuple(rows), titles=titles)


def experiment(values: Values, files: Sequence[Path], where: str = "") -> ExperimentConfig:
    """Raises ConfigurationError: one sentence, with `where` at its end."""
    try:
        return ExperimentConfig(**drop_none(values))
    except ValidationError as error:
        raise ConfigurationError(
            sentence(error, ExperimentConfig, files).rstrip(".") + where + "."
        ) from None


def _check_algorithm(name: str, files: Sequence[Path], where: str) -> None:
    """Raises ConfigurationError: there is none of this name. A method that is called otherwise than
    its algorithm, and does not say which it is, is the usual case."""
    from node.algorithms import find  # has torch

    try:
        find(name)
    except ConfigurationError as error:
        named = ", ".join(map(str, files))
        sentence = str(error).rstrip(".")
        raise ConfigurationError(f"{named}: algorithm.name: {sentence}{where}.") from None


WAITING = ("sync", "start")
"""Sections about waiting for neighbors; a simulation reads of them only `sync.mode`."""


def digest(configuration: Json) -> str:
    """SHA-256 (hex) of what a simulation reads of a configuration, as JSON has it."""
    read = without_folders(configuration)
    read["mode"] = configuration["sync"]["mode"]
    for waiting in WAITING:
        del read[waiting]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _section(values: object, file: Path) -> SweepSection:
    try:
        return SweepSection.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(sentence(error, SweepSection, [file], within="sweep")) from None


def _difference(values: Values, file: Path, where: str) -> Difference:
    own = {key: value for key, value in values.items() if key in OWN}
    rest = {key: value for key, value in values.items() if key not in OWN}
    for key, value in rest.items():
        if key not in ExperimentConfig.model_fields or not isinstance(value, dict):
            raise ConfigurationError(
                f"{file}: {where}.{key}: unknown key; sections of the experiment, "
                f"{', '.join(OWN)} are known."
            )
    try:
        return Difference(**own, values=rest)
    except ValidationError as error:
        raise ConfigurationError(sentence(error, Difference, [file], within=where)) from None


def _methods(section: SweepSection, values: Values, file: Path) -> dict[str, Difference]:
    methods = {
        name: Difference(values={"algorithm": {"name": name}}) for name in section.algorithms
    }
    for name, change in section.methods.items():
        own = _difference(change, file, f"sweep.methods.{name}")
        merge(
            own.values, {"algorithm": {"name": own.values.get("algorithm", {}).get("name", name)}}
        )
        methods[name] = own
    if not methods:
        name = values.get("algorithm", {}).get("name")
        if name is None:
            raise ConfigurationError(
                f'{file}: name the methods to compare, say sweep.algorithms = ["dpdl", "xavg"].'
            )
        methods[name] = Difference()
    return methods


def _settings(section: SweepSection, file: Path) -> Iterator[tuple[str, str, Difference]]:
    """(name, title, what it changes) of every setting with every combination of the grid."""
    named = {
        name: _difference(it, file, f"sweep.settings.{name}")
        for name, it in section.settings.items()
    }
    for name, setting in (named or {"": Difference()}).items():
        for combination in product(*section.grid.values()):
            chosen = dict(zip(section.grid, combination, strict=True))
            says = [f"{key.rpartition('.')[2]} {_short(value)}" for key, value in chosen.items()]
            values = deepcopy(setting.values)
            for key, value in chosen.items():
                merge(values, nested(key.split("."), value))
            known = ", ".join(filter(None, [name, *says])) or section.name
            title = (
                ", ".join(filter(None, [setting.title or name, *says]))
                or section.title
                or section.name
            )
            yield known, title, setting.model_copy(update={"values": values})


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
