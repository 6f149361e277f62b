"""A federation on disk: the CA, the signed roster, run.toml, and one folder per node that
`peerpoise run` starts from.

Both `up` (all nodes on loopback) and `pack` (one folder per real host) are `prepare` with other
addresses and data.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from node.config import (
    BudgetSection,
    ComputeSection,
    DataSection,
    ExperimentConfig,
    IdentitySection,
    ListenSection,
    MetricsSection,
    NodeConfig,
    RunConfig,
    write,
)
from node.experiments.federation import Federation
from peer import files
from peer.endpoint import WILDCARD_HOSTS, endpoint
from peer.identity.keys import PublicKey
from peer.identity.roster import Member, Roster

if TYPE_CHECKING:
    from node.experiments.resolve import ResolvedRun

OWN = IdentitySection(key=Path("node.key"), certificate=Path("node.pem"), ca=Path("ca.pem"))
"""What `Federation.enrol` writes, relative to the node's folder."""
START = "start.safetensors"
"""What `train.start` is called beside run.toml."""
ASKED = (
    "Write budget.epsilon into node.toml before you start: what these data may give away in all "
    "runs together, earlier ones included (peerpoise budget NAME says what is spent); and "
    "budget.delta, as in earlier runs, if that was not 1e-5."
)
BUDGET_NOTE = {
    "budget": "epsilon, at this delta: what these data may ever give away, in all runs together. "
    "pack wrote what this run is planned to spend, at its own delta; both are for the owner of the "
    'data to change. "unlimited": run.toml decides.'
}


def prepare(
    folder: Path,
    pinned: RunConfig,
    nodes: Mapping[Path, NodeConfig],
    federation: Federation | None = None,
    requested: Mapping[str, PublicKey] = MappingProxyType({}),
) -> RunConfig:
    """Writes each node's folder; returns the run as sealed: with nonce and federation key.

    Args:
        pinned: `ResolvedRun.pinned()`.
        federation: whose members the nodes become; None: a new one, folder/federation.
        requested: the keys of those nodes whose hosts made them.

    Raises:
        ConfigurationError: a bad address.
    """
    federation = federation or Federation.create(folder / "federation")
    authority = federation.authority
    run = pinned.run.model_copy(
        update={"nonce": secrets.token_hex(16), "federation": authority.federation}
    )
    validation = pinned.validation.model_copy(update={"path": None})
    train = pinned.train.model_copy(update={"start": pinned.train.start and Path(START)})
    sealed = pinned.model_copy(update={"run": run, "validation": validation, "train": train})
    members = []
    for home, node in nodes.items():
        own = federation.enrol(node.name, files.new_dir(home), requested.get(node.name))
        members.append(Member(node.name, own, _written_down(node)))
        node = _with_validation(node, home, pinned.validation.path)
        if not federation.key(node.name).exists():
            identity = node.identity.model_copy(update={"key": None})
            node = node.model_copy(update={"identity": identity})
        write(node, home / "node.toml", _note(node.budget))
    roster = Roster(version=1, effective_round=0, members=tuple(members))
    for home in (*nodes, folder):
        if pinned.train.start:
            copy(pinned.train.start, home / START)
        write(sealed, home / "run.toml")
        roster.save(home / "roster.json", authority.key)
    return sealed


def _note(budget: BudgetSection) -> dict[str, str]:
    """What is written above [budget]."""
    if budget.experiment:
        return {}
    return BUDGET_NOTE if budget.epsilon is not None else {"budget": ASKED}


def _with_validation(node: NodeConfig, home: Path, shared: Path | None) -> NodeConfig:
    """The node with its copy of the run's validation set, if that is a file."""
    if shared is None:
        return node
    name = Path(f"validation{shared.suffix}")
    copy(shared, home / name)
    data = node.data.model_copy(update={"validation": name})
    return node.model_copy(update={"data": data})


def copy(source: Path, target: Path) -> None:
    """Copies a file, complete or not at all."""
    with source.open("rb") as stream:
        files.atomic_write(target, iter(partial(stream.read, 1 << 20), b""))


def _written_down(node: NodeConfig) -> tuple[str, ...]:
    """The address that the roster has; none where the node listens everywhere and advertises
    nothing.
    """
    address = node.listen.advertise or node.listen.address
    return () if endpoint(address)[0] in WILDCARD_HOSTS else (address,)


def local(
    folder: Path, resolved: ResolvedRun, ports: Sequence[tuple[int, int]]
) -> tuple[RunConfig, dict[str, Path]]:
    """`up`: every node of the experiment on loopback at its (peer port, metrics port). Returns the
    run and the folders.

    The CA is thrown away: nobody can join later. Ledgers go with the run folder, too.
    """
    config, places = resolved.experiment, {}
    budget = BudgetSection(
        experiment=not resolved.own,
        epsilon="unlimited" if resolved.own else None,
        ledger_dir=Path("ledger"),
    )
    public = DataSection(name=config.task.data.replace(":", "-"), rows=Path("rows.npy"))
    for name, (port, metrics) in zip(config.experiment.names, ports, strict=True):
        places[folder / "nodes" / name] = NodeConfig(
            name=name,
            folder=Path(),
            identity=OWN,
            tasks=own_tasks(config),
            data=resolved.own.get(name, public),
            listen=ListenSection(address=f"127.0.0.1:{port}", advertise=f"127.0.0.1:{port}"),
            budget=budget,
            metrics=MetricsSection(listen=f"127.0.0.1:{metrics}"),
            compute=ComputeSection(device=config.experiment.device),
            attack=config.experiment.attack_of(name),
        )
    sealed = prepare(folder, resolved.pinned(), places)
    shutil.rmtree(folder / "federation")
    homes = {home.name: home for home in places}
    divide(folder, resolved, homes)
    return sealed, homes


def divide(folder: Path, resolved: ResolvedRun, homes: Mapping[str, Path]) -> None:
    """Writes partition.json, and of public data every node's rows.npy."""
    from node.data import partition

    for name, rows in resolved.parts.items():
        partition.save(homes[name] / "rows.npy", rows)
    write_partition(folder, resolved)


def write_partition(folder: Path, resolved: ResolvedRun) -> None:
    """Writes partition.json: [experiment], and of public data the label histogram
    [nodes][classes].
    """
    document = {**resolved.experiment.experiment.model_dump(), "histogram": _histogram(resolved)}
    files.atomic_write(folder / "partition.json", json.dumps(document, indent=1).encode() + b"\n")


def _histogram(resolved: ResolvedRun) -> dict[str, list[int]]:
    """Rows of each class at each node; {} of own data, whose labels are private."""
    from node.data import partition

    config, train = resolved.experiment, resolved.train
    if train is None:
        return {}
    kinds = partition.kinds(config.experiment, train)
    classes = int(kinds.max()) + 1
    if not config.experiment.column and not config.task.text:
        classes = max(classes, config.task.outputs)
    parts = list(resolved.parts.values())
    histogram: list[list[int]] = partition.histogram(kinds, parts, classes).tolist()
    return dict(zip(resolved.parts, histogram, strict=True))


def own_tasks(config: ExperimentConfig) -> tuple[str, ...]:
    """The run's own code, which its nodes must allow."""
    return config.task.own_code
