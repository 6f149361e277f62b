"""An experiment resolved: everything that follows from its file before anything runs, made once.

Whoever runs, packs or checks an experiment starts from a `ResolvedRun`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from node import data, models, tasks
from node.attacks import Attack
from node.config import (
    AlgorithmSection,
    DataSection,
    ExperimentConfig,
    RunConfig,
)
from node.config.task import SUPERVISED
from node.data import partition
from node.data.examples import kinds
from node.data.partition import Rows
from node.learning import promises, start
from node.learning.plan import Plan
from node.learning.warnings import loose_delta, weak
from node.privacy.unit_task import by_unit
from node.tasks import validation
from peer.errors import ConfigurationError
from peer.identity.roster import Roster
from peer.message import Peer
from peer.topology import make_neighborhoods


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """An experiment, and what follows from it."""

    experiment: ExperimentConfig
    run: RunConfig
    """The run with its validation set written out; of a pooled algorithm with one large batch."""
    plan: Plan
    """Of `run`, on the graph of those who take part."""
    train: data.Rows | None
    """The public training examples; None: the data are the nodes' own."""
    parts: Mapping[Peer, Rows]
    """Each node's rows of them (of a pooled algorithm one node's, "all"); {} with own data."""
    own: Mapping[Peer, DataSection]
    """Each node's own data, where they are on this machine (`up --data`); else {}."""

    @property
    def data(self) -> Mapping[Peer, DataSection | Rows]:
        """What each node learns from, as far as it is here."""
        return self.own or self.parts

    def pinned(self) -> RunConfig:
        """The run as run.toml has it: with every option of its algorithm, and what its task needs
        to be the same everywhere, written out. So its digest covers defaults too.

        Raises:
            ConfigurationError, DataError: of the task's own files.
        """
        options = self.plan.options.model_dump(mode="json", exclude_none=True)
        algorithm = AlgorithmSection(name=self.run.algorithm.name, **options)
        fields = {name: getattr(self.run, name) for name in RunConfig.model_fields}
        return tasks.sealed(RunConfig(**{**fields, "algorithm": algorithm}))

    def check_data(self) -> None:
        """Raises ConfigurationError: the data are the nodes' own, and not here."""
        if not self.data:
            raise ConfigurationError(
                'task.data = "own" is for real hosts: peerpoise pack. To try their files on this '
                "machine, give each node its own: --data n0=PATH --data n1=PATH …"
            )

    def _check_daemons(self) -> None:
        """Raises ConfigurationError: the algorithm wants everybody's data in one place."""
        if self.plan.algorithm.POOLED:
            raise ConfigurationError(
                f"{self.run.algorithm.name} sees everybody's data, which no daemon may; run it "
                "with peerpoise simulate."
            )

    def checked(self, *, daemons: bool = False) -> ResolvedRun:
        """This run, after trying all that can be wrong before it starts: task, model, attack. A
        planned ε that promises nothing, or a δ that keeps nothing, is a warning on standard error.

        Args:
            daemons: they are what will run it.

        Raises:
            ConfigurationError, DataError: one sentence.
        """
        if daemons:
            self._check_daemons()
        _check_attack(self)
        if self.data:
            _check_task(self)
        else:
            _check_names(self)
        for text in self._doubts():
            print(f"warning: {text}", file=sys.stderr)
        return self

    def _doubts(self) -> Iterator[str]:
        """Why the planned ε promises little; from public figures alone."""
        planned, privacy = self.plan.epsilon, self.run.privacy
        if planned is not None:
            unit = self.run.task.unit
            loose = loose_delta(privacy.delta, privacy.public_examples, unit)
            yield from filter(None, (weak(planned), loose))


def resolve(
    config: ExperimentConfig,
    names: Sequence[Peer] = (),
    own: Mapping[Peer, DataSection] = MappingProxyType({}),
) -> ResolvedRun:
    """Resolves an experiment in which `names` take part, or the experiment's own nodes. `own`: the
    data of each, where they are the nodes' own and on this machine.

    Raises:
        ConfigurationError, DataError: an unknown topology, algorithm, option or data set, or data
            that can't be divided so.
    """
    names = names or config.experiment.names
    experiment = config.experiment.model_copy(update={"nodes": len(names)})
    config = config.model_copy(update={"experiment": experiment})
    neighborhoods = config.neighborhoods(names)
    plan = Plan.of(config.run_config, neighborhoods)  # its mistakes come before any data are read
    run = start.sealed(validation.sealed(config.run_config))
    train: data.Rows | None = None
    parts: dict[Peer, Rows] = {}
    if config.task.data != "own":
        train = tasks.to_divide(run)
        held_out = validation.held_out(run, kinds(train.y))
        parts = dict(zip(names, partition.divide(experiment, train, held_out), strict=True))
        if plan.algorithm.PUBLIC:
            parts = _public(run, held_out)
    if plan.algorithm.POOLED:
        if train is None:
            raise ConfigurationError(
                f"{config.algorithm.name} learns from all rows in one place; with own data each "
                "node keeps its own."
            )
        run, parts = _pooled(run, parts)
        neighborhoods = make_neighborhoods("full", list(parts))
    plan = Plan.of(run, neighborhoods)
    return ResolvedRun(experiment=config, run=run, plan=plan, train=train, parts=parts, own=own)


def _public(run: RunConfig, rows: Rows) -> dict[Peer, Rows]:
    """The public validation set as the only data."""
    if not len(rows):
        raise ConfigurationError(
            f"{run.algorithm.name} learns from the public validation set, and there is none: set "
            "validation.size."
        )
    return {"public": rows}


def _pooled(run: RunConfig, parts: Mapping[Peer, Rows]) -> tuple[RunConfig, dict[Peer, Rows]]:
    """One node with all data, whose batch is as large as all nodes' together."""
    most = run.privacy.max_examples
    larger = {
        "batch": run.privacy.batch * len(parts),
        "max_examples": None if most is None else most * len(parts),
    }
    privacy = run.privacy.model_copy(update=larger)
    union = partition.union(list(parts.values()))
    return run.model_copy(update={"privacy": privacy}), {"all": union}


def _check_attack(resolved: ResolvedRun) -> None:
    """Raises ConfigurationError: there is nobody to attack, or no such attack."""
    section = resolved.experiment.experiment.attack
    if section is None:
        return
    Attack.of(section)
    if resolved.plan.algorithm.POOLED:
        raise ConfigurationError(
            f"{resolved.run.algorithm.name} is one node with everybody's data: nobody attacks it; "
            "remove [experiment.attack]."
        )


def _check_task(resolved: ResolvedRun) -> None:
    """Makes the task on one record, or on the first node's own file.

    Raises:
        ConfigurationError, DataError, TaskError: it can't be made, or does not suit the rest.
    """
    run, experiment = resolved.run, resolved.experiment.experiment
    task = by_unit(tasks.make(run, _little(next(iter(resolved.data.values())))), run.task)
    resolved.plan.check_task(task)
    if run.train.start:
        start.parameters(run, task.layout, torch.float32)
    if run.task.name not in tasks.TASKS:
        task.evaluate(promises.checked_start(task, run.train.seed))
    for attacker in experiment.attackers[:1]:
        section = experiment.attack_of(attacker)
        assert section is not None
        Attack.of(section).on_task(task, run, attacker)


def _little(data: DataSection | Rows) -> DataSection | Rows:
    """One row of what is divided; a file of one's own is read whole."""
    return data if isinstance(data, DataSection) else data[:1]


def _check_names(resolved: ResolvedRun) -> None:
    """Raises ConfigurationError, DataError: there is no such task, model or validation set, as far
    as that is known without the hosts' data."""
    tasks.sealed(resolved.run)
    if resolved.run.task.name in SUPERVISED:
        models.check_name(resolved.run.task.model)


def members(config: ExperimentConfig, roster: Path) -> Sequence[Peer]:
    """Who takes part: a sealed run has a roster, an experiment says how many."""
    sealed = (
        config.run.federation
        and roster.exists()
        and "nodes" not in config.experiment.model_fields_set
    )
    return Roster.load(roster, config.run.federation).names if sealed else config.experiment.names


def participants(config: ExperimentConfig) -> Sequence[Peer]:
    """Who will take part where it is not known yet: the experiment's nodes, or other hosts that
    edges name.
    """
    hosts = {name for edge in config.topology.edges for name in edge[:2]}
    names = config.experiment.names
    return names if hosts <= {*names} else sorted(hosts)
