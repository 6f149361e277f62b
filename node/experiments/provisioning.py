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
from peer import files
from peer.endpoint import WILDCARD_HOSTS, endpoint
from peer.errors import StorageError
from peer.identity.authority import CertificateAuthority
from peer.identity.roster import Member, Roster

if TYPE_CHECKING:
    from node.experiments.resolve import ResolvedRun

OWN = IdentitySection(key=Path("node.key"), certificate=Path("node.pem"), ca=Path("ca.pem"))
"""What `CertificateAuthority.enrol` writes, relative to the node's folder."""
BUDGET_NOTE = {
    "budget": "epsilon: what these data may ever give away, in all runs together. pack wrote "
    "what this run is planned "
    'to spend; it is for the owner of the data to change. "unlimited": run.toml decides.'
}


def make_folder(folder: Path) -> Path:
    """A new folder, readable by its owner only.

    Raises:
        StorageError: it exists and is not empty, can't be made, or others can write to it.
    """
    if any(files.ensure_dir(folder).iterdir()):
        raise StorageError(
            f"{folder} exists and is not empty; choose another folder or move it away."
        )
    return folder


def prepare(folder: Path, pinned: RunConfig, nodes: Mapping[Path, NodeConfig]) -> RunConfig:
    """Writes folder/federation (CA) and each node's folder; returns the run as sealed: with nonce
    and federation key. `pinned`: `ResolvedRun.pinned()`.

    Raises:
        ConfigurationError: a bad address.
    """
    authority = CertificateAuthority.create(make_folder(folder / "federation"))
    run = pinned.run.model_copy(
        update={"nonce": secrets.token_hex(16), "federation": authority.federation}
    )
    sealed = pinned.model_copy(update={"run": run})
    shared = sealed.validation.path
    if shared is not None:
        sealed = sealed.model_copy(
            update={"validation": sealed.validation.model_copy(update={"path": None})}
        )
    members = []
    for home, node in nodes.items():
        identity = authority.enrol(make_folder(home))
        if shared is not None:
            copy = home / f"validation{shared.suffix}"
            with shared.open("rb") as stream:
                files.atomic_write(copy, iter(partial(stream.read, 1 << 20), b""))
            node = node.model_copy(
                update={"data": node.data.model_copy(update={"validation": Path(copy.name)})}
            )
        members.append(Member(node.name, identity.id, _written_down(node)))
        write(node, home / "node.toml", BUDGET_NOTE if node.budget.epsilon is not None else {})
    roster = Roster(version=1, effective_round=0, members=tuple(members))
    for home in (*nodes, folder):
        write(sealed, home / "run.toml")
        roster.save(home / "roster.json", authority.key)
    return sealed


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

    The CA is thrown away: nobody can join later. Ledgers are throw-away too, which only public data
    may use.
    """
    config, places = resolved.experiment, {}
    for name, (port, metrics) in zip(config.experiment.names, ports, strict=True):
        places[folder / "nodes" / name] = NodeConfig(
            name=name,
            folder=Path(),
            identity=OWN,
            tasks=own_tasks(config),
            data=DataSection(name=config.task.data.replace(":", "-"), rows=Path("rows.npy")),
            listen=ListenSection(address=f"127.0.0.1:{port}", advertise=f"127.0.0.1:{port}"),
            budget=BudgetSection(experiment=True, ledger_dir=Path("ledger")),
            metrics=MetricsSection(listen=f"127.0.0.1:{metrics}"),
            compute=ComputeSection(device=config.experiment.device),
            attack=config.experiment.attack_of(name),
        )
    sealed = prepare(folder, resolved.pinned(), places)
    shutil.rmtree(folder / "federation")
    homes = {home.name: home for home in places}
    divide(folder, resolved, homes)
    return sealed, homes


def divide(folder: Path, resolved: ResolvedRun, homes: Mapping[str, Path]) -> list[list[int]]:
    """Writes rows.npy of every node and partition.json; returns the label histogram
    [nodes][classes] (public data).
    """
    from node.data import partition

    config, train = resolved.experiment, resolved.train
    assert train is not None
    for name, home in homes.items():
        partition.save(home / "rows.npy", resolved.parts[name])
    kinds = partition.kinds(config.experiment, train)
    classes = (
        int(kinds.max()) + 1
        if config.experiment.column or config.task.text
        else config.task.classes
    )
    parts = list(resolved.parts.values())
    histogram: list[list[int]] = partition.histogram(kinds, parts, classes).tolist()
    document = {
        **config.experiment.model_dump(),
        "histogram": dict(zip(homes, histogram, strict=True)),
    }
    files.atomic_write(folder / "partition.json", json.dumps(document, indent=1).encode() + b"\n")
    return histogram


def own_tasks(config: ExperimentConfig) -> tuple[str, ...]:
    """The run's own code, which its nodes must allow."""
    return config.task.own_code
