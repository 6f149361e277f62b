"""A federation on disk: the CA, the signed roster, run.toml, and one folder per node that
`peerpoise run` starts from.

Both `up` (all nodes on loopback) and `pack` (one folder per real host) are `prepare` with other
addresses and data.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.config import (
    BudgetSection,
    ComputeSection,
    DataSection,
    ExperimentConfig,
    IdentitySection,
    ListenSection,
    MetricsSection,
    NodeConfig,
    PeersSection,
    RunConfig,
    TaskSection,
    load,
    write,
)
from peer import files
from peer.codec import NAME
from peer.endpoint import WILDCARD_HOSTS, endpoint
from peer.errors import ConfigurationError, DataError, IdentityError, StorageError
from peer.identity.authority import CertificateAuthority
from peer.identity.keys import load_certificate, names, node_id, p256
from peer.identity.roster import Member, Roster

if TYPE_CHECKING:
    from node.experiments.resolve import ResolvedRun
    from node.learning.learner import Plan

OWN = IdentitySection(key=Path("node.key"), certificate=Path("node.pem"), ca=Path("ca.pem"))
"""What `CertificateAuthority.enrol` writes, relative to the node's folder."""
BUDGET_NOTE = {
    "budget": "epsilon: what these data may ever give away, in all runs together. pack wrote "
    "what this run is planned "
    'to spend; it is for the owner of the data to change. "unlimited": run.toml decides.'
}
PORT = 7443
"""Where a packed host listens if nobody says otherwise."""
START_S = 3600.0
"""`start.timeout_s` of a packed run that sets none: people start hosts one after another."""


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


def pack(
    config: ExperimentConfig,
    hosts: Sequence[str],
    data: Sequence[str],
    out: Path,
    discovery: Sequence[str] = (),
) -> dict[str, Any]:
    """One folder per host. `hosts`: "name=host:port", or "name" where a discovery finds the
    address. `data`: "name=data:path", or "name=data" to fill in there. `discovery`: what the hosts
    use beside static addresses.

    Bundled data are divided among the hosts as [experiment] says. Hosts wait START_S for each other
    unless the run says how long.

    Raises:
        ConfigurationError: a mistake in `hosts`, `data` or `discovery`, or own data without a name.
        StorageError: `out` is not empty.
    """
    from node.experiments.resolve import resolve

    if "timeout_s" not in config.start.model_fields_set:
        start = config.start.model_copy(update={"timeout_s": START_S})
        config = config.model_copy(update={"start": start})
    if config.experiment.attack:
        raise ConfigurationError(
            "pack prepares honest hosts: remove [experiment.attack]; an attacker is started by "
            "itself, with peerpoise run --attack."
        )
    addresses, own = _pairs("--host", hosts, bare=True), _pairs("--data", data)
    peers = _peers(addresses, discovery)
    bundled = config.task.data != "own"
    if unknown := sorted(set(own) - set(addresses)):
        raise ConfigurationError(
            f"--data names {unknown[0]}, but there is no --host {unknown[0]}=…."
        )
    if not bundled and (missing := sorted(set(addresses) - set(own))):
        raise ConfigurationError(
            f'task.data is "own": say what {missing[0]} holds, as --data {missing[0]}=NAME:PATH.'
        )
    if bundled and own:
        raise ConfigurationError(
            f'--data needs task.data = "own"; the file says {config.task.data!r}.'
        )
    hosts_of = {
        out / name: _host(name, address, own.get(name), config, peers)
        for name, address in addresses.items()
    }
    _check_task(config.task)
    resolved = resolve(config, list(addresses)).checked()
    resolved.check_daemons()
    budget = BudgetSection(experiment=True, ledger_dir=Path("ledger"))
    if not bundled:
        budget = _budget(resolved.plan)
    homes = {home: node.model_copy(update={"budget": budget}) for home, node in hosts_of.items()}
    pinned = resolved.pinned()  # its mistakes come before anything is written
    sealed = prepare(make_folder(out), pinned, homes)
    for home, node in homes.items():
        files.atomic_write(home / "README.txt", _instructions(node, sealed).encode())
    if bundled:
        divide(out, resolved, {home.name: home for home in homes})
    return {
        "run_id": sealed.run_id,
        "hosts": {home.name: str(home) for home in homes},
        "federation": str(out / "federation"),
    }


def _check_task(task: TaskSection) -> None:
    """Raises ConfigurationError: its code is named by a file, which is on this machine only."""
    from node.data import own_families
    from node.tasks import is_file

    if is_file(task.name):
        raise ConfigurationError(
            f"task.name = {task.name!r} names a file of this machine; put it where Python finds it "
            "on every host, and name the module: package.module:function."
        )
    for name in filter(own_families.is_file, task.own_code):
        raise ConfigurationError(
            f"The family {name!r} is a file of this machine; put it where Python finds it on every "
            "host, and name the module: own:package.module."
        )


def _peers(addresses: Mapping[str, str], discovery: Sequence[str]) -> PeersSection:
    """How the hosts find each other.

    Raises:
        ConfigurationError: an unknown discovery, or nobody would find the hosts without an address.
    """
    if unknown := sorted({*discovery} - {"static", "exchange", "mdns"}):
        raise ConfigurationError(f"--discovery {unknown[0]} is none of static, exchange and mdns.")
    bare = [name for name, address in addresses.items() if not address]
    if bare and not {"exchange", "mdns"} & {*discovery}:
        raise ConfigurationError(
            f"--host {bare[0]} has no address: write {bare[0]}=HOST:PORT, or say how it is found, "
            "with --discovery exchange or --discovery mdns."
        )
    if len(bare) == len(addresses) and "mdns" not in discovery:
        raise ConfigurationError(
            "Peer exchange needs one address to begin with: write --host NAME=HOST:PORT for one."
        )
    return PeersSection(
        discovery=("static", *(name for name in ("exchange", "mdns") if name in discovery))
    )


def _pairs(option: str, given: Sequence[str], *, bare: bool = False) -> dict[str, str]:
    """NAME=VALUE, each name once; `bare`: NAME alone has an empty value."""
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and (value if equals else bare)):
            raise ConfigurationError(f"{option} {text!r} is not of the form NAME=VALUE.")
        if name in pairs or name == "federation" or not NAME.fullmatch(name):
            raise ConfigurationError(
                f"{option} {text!r}: {name!r} is given twice or can't name a host's folder."
            )
        pairs[name] = value
    return pairs


def _host(
    name: str, address: str, data: str | None, config: ExperimentConfig, peers: PeersSection
) -> NodeConfig:
    from node.privacy.ledger import check_name

    host, port = endpoint(address or f"0.0.0.0:{PORT}")
    if port == 0:
        raise ConfigurationError(
            f"--host {name}={address}: neighbors need a port they can dial, 1 to 65535."
        )
    if address and host in WILDCARD_HOSTS:
        raise ConfigurationError(
            f"--host {name}={address}: write the address at which neighbors dial {name}."
        )
    if data is None:
        section = DataSection(name=config.task.data.replace(":", "-"), rows=Path("rows.npy"))
    else:
        label, _, path = data.partition(":")
        check_name(label)
        section = DataSection(name=label, path=Path(path or "FILL-IN.npz"))
    return NodeConfig(
        name=name,
        identity=OWN,
        tasks=own_tasks(config),
        data=section,
        listen=ListenSection(
            address=f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}", advertise=address
        ),
        peers=peers,
    )


def _budget(plan: Plan) -> BudgetSection:
    """What own data may spend, until their owner says otherwise: this run, and no second one."""
    privacy, planned = plan.run.privacy, plan.epsilon
    if planned is None or not math.isfinite(planned) or privacy.insecure_seed is not None:
        return BudgetSection(epsilon="unlimited")  # no number could be kept
    if privacy.epsilon is None:
        planned *= 1.02  # the grid of the noise
        digit = 10.0 ** (math.floor(math.log10(planned)) - 2)
        planned = float(f"{math.ceil(planned / digit) * digit:.6g}")
    return BudgetSection(epsilon=planned, delta=privacy.delta)


def own_tasks(config: ExperimentConfig) -> tuple[str, ...]:
    """The run's own code, which its nodes must allow."""
    return config.task.own_code


def _instructions(node: NodeConfig, run: RunConfig) -> str:
    path, at = node.data.path, node.listen.advertise
    contact = (
        f"Neighbors reach it at {at}"
        if at
        else f"Neighbors find it by {', '.join(node.peers.discovery[1:])}"
    )
    limit = (
        "nothing bounds what they give away"
        if node.budget.limit is None
        else f"ε_total {node.budget.limit:g}"
    )
    own = (
        f"Its private data: {path} (data.path in node.toml; not copied by pack).\n" if path else ""
    )
    own += (
        f"Their budget in all runs together: {limit} (budget.epsilon in node.toml).\n"
        if path
        else ""
    )
    own += "".join(
        f"The code of the task {task} runs there and sees the data (tasks in node.toml).\n"
        for task in node.tasks
    )
    return (
        f"This folder is node {node.name} of run {run.run.name} ({run.run_id}).\n"
        "Copy it to that machine (node.key readable by its owner only), install peerpoise, "
        "and in this folder run:\n\n"
        f"    peerpoise run --config node.toml\n\n"
        f"{contact}; it listens at {node.listen.address}.\n{own}"
        "It says whom it waits for, and why. In another terminal: peerpoise status --watch "
        f"{node.name}\n"
    )


def create_authority(folder: Path) -> dict[str, object]:
    authority = CertificateAuthority.create(make_folder(folder))
    return {"folder": str(folder), "federation": authority.federation}


def issue(folder: Path, out: Path, request: Path | None, days: int) -> dict[str, object]:
    """A node's certificate in `out`; with `request` the key stays where it was made."""
    authority = CertificateAuthority.load(folder)
    if request is None:
        return {"folder": str(out), "id": authority.enrol(out, days).id}
    try:
        certificate = authority.sign_request(request.read_bytes(), days)
    except OSError as error:
        raise DataError(f"{request} can't be read: {error.strerror}.") from None
    files.atomic_write(files.ensure_dir(out) / "node.pem", certificate, public=True)
    files.atomic_write(out / "ca.pem", authority.pem, public=True)
    return {"folder": str(out), "id": show_certificate(out / "node.pem")["id"]}


def show_certificate(place: Path) -> dict[str, object]:
    """What a certificate says; of a folder, its node.pem, otherwise its ca.pem."""
    if place.is_dir():
        place = place / ("node.pem" if (place / "node.pem").exists() else "ca.pem")
    certificate = load_certificate(place)
    key = p256(certificate)
    return {
        "file": str(place),
        "id": node_id(key) if key else "not a P-256 key",
        "names": ", ".join(names(certificate)) or "none: a CA",
        "issuer": certificate.issuer.rfc4514_string(),
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
    }


def show_roster(folder: Path) -> dict[str, object]:
    """What the roster in this folder says; run.toml beside it has the key that it must be signed
    with.
    """
    file, roster = _roster_in(folder)
    return {
        "file": str(file),
        "version": roster.version,
        "members": ", ".join(name for name in roster.names if name not in roster.removed),
        "removed": ", ".join(roster.removed) or "nobody",
    }


def remove_members(folder: Path, names: Sequence[str], authority: Path) -> dict[str, object]:
    """Writes the next version of the roster in this folder, without these members.

    Raises:
        ConfigurationError: one of them is no member, or none would be left.
        IdentityError: the CA is not there, or not this run's.
    """
    file, roster = _roster_in(folder)
    newer = roster.without(names)
    signer = CertificateAuthority.load(authority)
    if signer.federation != load(RunConfig, [folder / "run.toml"], environ={}).run.federation:
        raise IdentityError(f"The CA in {authority} is not the one of the run in {folder}.")
    newer.save(file, signer.key)
    return show_roster(folder)


def _roster_in(folder: Path) -> tuple[Path, Roster]:
    run = load(RunConfig, [folder / "run.toml"], environ={})
    file = folder / "roster.json"
    return file, Roster.load(file, run.run.federation)
