"""`pack`: a federation of real hosts, one folder for each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.config import (
    BudgetSection,
    DataSection,
    ExperimentConfig,
    ListenSection,
    NodeConfig,
    PeersSection,
    RunConfig,
    TaskSection,
)
from node.experiments.federation import Federation
from node.experiments.provisioning import ASKED, OWN, copy, divide, own_tasks, prepare
from peer import files
from peer.codec import NAME
from peer.endpoint import WILDCARD_HOSTS, endpoint, format_endpoint
from peer.errors import ConfigurationError, IdentityError
from peer.identity import requests
from peer.identity.keys import PublicKey, node_id

if TYPE_CHECKING:
    from node.learning.plan import Plan

PORT = 7443
"""Where a packed host listens if nobody says otherwise."""
FINGERPRINT = re.compile("[0-9a-f]{64}")
"""The id of a node, as people copy it."""
START_S = 3600.0
"""`start.timeout_s` of a packed run that sets none: people start hosts one after another."""


def pack(
    config: ExperimentConfig,
    hosts: Sequence[str],
    data: Sequence[str],
    out: Path,
    discovery: Sequence[str] = (),
    *,
    tests: Sequence[str] = (),
    requested: Sequence[str] = (),
    federation: Path | None = None,
) -> dict[str, Any]:
    """One folder per host. Bundled data are divided among the hosts as [experiment] says. Hosts
    wait START_S for each other unless the run says how long.

    Args:
        hosts: "name=host:port", or "name" where a discovery finds the address.
        data: "name=data:path", or "name=data" to fill in there.
        discovery: what the hosts use beside static addresses.
        tests: "name:path" of a host's private test set.
        requested: "name=file" of each host that made its key itself.
        federation: its CA and members are taken and added to; None: a new one, out/federation.

    Raises:
        ConfigurationError: a mistake in one of these, or own data without a name.
        IdentityError: a request or the federation can't be used.
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
    addresses, own = pairs("--host", hosts, bare=True), pairs("--data", data)
    test_of = pairs("--test", tests, separator=":")
    _check_addresses(addresses)
    peers = _peers(addresses, discovery)
    bundled = config.task.data != "own"
    _check_data(config.task.data, addresses, own, test_of)
    hosts_of = {
        out / name: _with_test(_host(name, address, own.get(name), config, peers), test_of)
        for name, address in addresses.items()
    }
    _check_task(config.task)
    known = Federation.load(federation) if federation else None
    keys = _keys(pairs("--request", requested), list(addresses), known)
    resolved = resolve(config, list(addresses)).checked(daemons=True)
    budget = BudgetSection(experiment=True, ledger_dir=Path("ledger"))
    if not bundled:
        budget = _budget(resolved.plan, first=not known and config.train.start is None)
    homes = {home: node.model_copy(update={"budget": budget}) for home, node in hosts_of.items()}
    pinned = resolved.pinned()  # its mistakes come before anything is written
    public = _public_files(pinned.task)
    beside = pinned.model_copy(update={"task": _beside(pinned.task, public)})
    sealed = prepare(files.new_dir(out), beside, homes, known, keys)
    for home in (*homes, out):
        for name, path in public.items():
            copy(path, home / name)
    for home, node in homes.items():
        text = _instructions(node, sealed, has_key=(home / "node.key").exists())
        files.atomic_write(home / "README.txt", text.encode())
    if bundled:
        divide(out, resolved, {home.name: home for home in homes})
    return {
        "run_id": sealed.run_id,
        "hosts": {home.name: str(home) for home in homes},
        "federation": str(federation or out / "federation"),
        "asked": ASKED if budget.epsilon is None and not bundled else None,
    }


def _check_addresses(addresses: Mapping[str, str]) -> None:
    """Raises ConfigurationError: two hosts at one address."""
    at: dict[str, str] = {}
    for name, address in addresses.items():
        if address and (other := at.setdefault(_same_form(address), name)) != name:
            raise ConfigurationError(
                f"--host {other} and {name} have one address, {address}; each needs its own, or a "
                "port of its own."
            )


def _same_form(address: str) -> str:
    """Equal for addresses that differ in spelling only."""
    host, port = endpoint(address)
    with suppress(ValueError):
        host = str(ip_address(host))
    return format_endpoint(host.lower(), port)


def _check_data(
    data: str,
    addresses: Mapping[str, str],
    own: Mapping[str, str],
    tests: Mapping[str, str],
) -> None:
    """Raises ConfigurationError: what --data and --test name does not fit task.data, or the
    hosts."""
    for option, named in (("--data", own), ("--test", tests)):
        if unknown := sorted(set(named) - set(addresses)):
            raise ConfigurationError(
                f"{option} names {unknown[0]}, but there is no --host {unknown[0]}=…."
            )
        if named and data != "own":
            raise ConfigurationError(f'{option} needs task.data = "own"; the file says {data!r}.')
    if data == "own" and (missing := sorted(set(addresses) - set(own))):
        raise ConfigurationError(
            f'task.data is "own": say what {missing[0]} holds, as --data {missing[0]}=NAME:PATH.'
        )


def _public_files(task: TaskSection) -> dict[str, Path]:
    """Name -> a public file that the run names, of which every host gets a copy. (A folder has to
    be at one place on all hosts.)

    Raises:
        ConfigurationError: two of one name.
    """
    named = [task.path, task.text.test if task.text else None]
    there = [path for path in named if path and path.is_file()]
    by_name = {path.name: path for path in there}
    if len(by_name) < len({*there}):
        raise ConfigurationError(
            f"task.path and task.text.test are both called {there[0].name}, and pack copies them "
            "into one folder; rename one."
        )
    return by_name


def _beside(task: TaskSection, public: Mapping[str, Path]) -> TaskSection:
    """The task with its public files beside run.toml."""
    text = task.text
    if text and text.test and text.test.name in public:
        text = text.model_copy(update={"test": Path(text.test.name)})
    path = Path(task.path.name) if task.path and task.path.name in public else task.path
    return task.model_copy(update={"path": path, "text": text})


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
            f"task.reasoning: {name!r} is a file of this machine; put it where Python finds it on "
            "every host, and name the module: own:package.module."
        )


def _keys(
    requested: Mapping[str, str], hosts: Sequence[str], federation: Federation | None
) -> dict[str, PublicKey]:
    """The keys of the hosts that made one themselves.

    Raises:
        ConfigurationError: a request of no host.
        IdentityError: a request can't be used, or two hosts would have one key.
        DataError: a file can't be read.
    """
    if unknown := sorted(set(requested) - set(hosts)):
        raise ConfigurationError(
            f"--request names {unknown[0]}, but there is no --host {unknown[0]}."
        )
    for name, file in requested.items():
        if FINGERPRINT.fullmatch(file) and not Path(file).exists():
            raise ConfigurationError(
                f"--request {name}: a fingerprint is not enough, as the CA signs the key itself; "
                f"name the file that peerpoise request wrote on {name}."
            )
    keys = {name: requests.read(Path(file)) for name, file in requested.items()}
    owners: dict[str, str] = {}
    for name in hosts:
        key = keys.get(name) or (federation and federation.member(name))
        if key and (other := owners.setdefault(node_id(key), name)) != name:
            raise IdentityError(
                f"{other} and {name} have the same key; each host makes its own, with peerpoise "
                "request."
            )
    return keys


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


def pairs(
    option: str, given: Sequence[str], *, bare: bool = False, separator: str = "="
) -> dict[str, str]:
    """NAME=VALUE, each name once; `bare`: NAME alone has an empty value.

    Raises:
        ConfigurationError: one that is not of this form, or can't name a folder.
    """
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition(separator)
        if not equals and option == "--host" and ":" in text:
            raise ConfigurationError(
                f"--host {text!r} has no name; write NAME={text}, the name of its node."
            )
        if not (name and (value if equals else bare)):
            raise ConfigurationError(f"{option} {text!r} is not of the form NAME{separator}VALUE.")
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
        label, colon, path = data.partition(":")
        if not colon and "/" in data:
            raise ConfigurationError(
                f"--data {name}={data}: write {name}=NAME:PATH, where NAME is what you call these "
                "data; their privacy ledger goes by it."
            )
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


def _with_test(node: NodeConfig, tests: Mapping[str, str]) -> NodeConfig:
    """The host with its private test set, if it has one."""
    if node.name not in tests:
        return node
    changes = {"test": Path(tests[node.name]), "test_public": False}
    return node.model_copy(update={"data": node.data.model_copy(update=changes)})


def _budget(plan: Plan, *, first: bool) -> BudgetSection:
    """What own data may spend, until their owner says otherwise: this run, and no second one. Of a
    second run the owner is asked: pack does not know what the data have spent. Its δ is not
    written for them either: at a larger one what they have spent counts for less.
    """
    privacy, planned = plan.run.privacy, plan.epsilon
    if planned is None or not math.isfinite(planned) or privacy.insecure_seed is not None:
        return BudgetSection(epsilon="unlimited")  # no number could be kept
    if not first:
        return BudgetSection()
    if privacy.epsilon is None:
        planned *= 1.02  # the grid of the noise
        digit = 10.0 ** (math.floor(math.log10(planned)) - 2)
        planned = float(f"{math.ceil(planned / digit) * digit:.6g}")
    return BudgetSection(epsilon=planned, delta=privacy.delta)


def _limit(budget: BudgetSection) -> str:
    if budget.epsilon is None:
        return f"not written yet. {ASKED}"
    if budget.limit is None:
        return "nothing bounds what they give away (budget.epsilon in node.toml)."
    return f"ε_total {budget.limit:g} (budget.epsilon in node.toml)."


def _place(path: Path) -> str:
    """Where a host looks for a file that its node.toml names."""
    there = path.is_absolute() or path.parts[:1] == ("~",)
    return str(path) if there else f"{path}, looked for in this folder, beside node.toml"


def _instructions(node: NodeConfig, run: RunConfig, *, has_key: bool) -> str:
    path, at = node.data.path, node.listen.advertise
    key = (
        "Its key is node.key; only its owner may read it."
        if has_key
        else "Its key is on that machine already: peerpoise request made it there."
    )
    contact = (
        f"Neighbors reach it at {at}"
        if at
        else f"Neighbors find it by {', '.join(node.peers.discovery[1:])}"
    )
    own = (
        f"Its private data: {_place(path)} (data.path in node.toml; not copied by pack).\n"
        if path
        else ""
    )
    own += f"Their budget in all runs together: {_limit(node.budget)}\n" if path else ""
    if test := node.data.test:
        own += (
            f"Its private test set: {_place(test)} (data.test in node.toml). Figures of it are "
            "outside of ε, so they\nstay on this host, unless data.test_public = true shares them "
            "in /metrics.\n"
        )
    own += "".join(
        f"The code of the task {task} runs there and sees the data (tasks in node.toml).\n"
        for task in node.tasks
    )
    return (
        f"This folder is node {node.name} of run {run.run.name} ({run.run_id}).\n"
        f"Copy it to that machine, install peerpoise, and in this folder run:\n\n"
        f"    peerpoise run --config node.toml\n\n"
        f"{key}\n{contact}; it listens at {node.listen.address}.\n{own}"
        f"In another terminal: peerpoise status --watch {node.name}\n"
    )
