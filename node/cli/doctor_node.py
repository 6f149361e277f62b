"""What `doctor --config` and `config check` say of a node: its files, address, neighbors, data,
ledger and memory.

Each check is one that the daemon makes too when it starts, here without starting: nothing is
written, a ledger is opened only if it exists, and a port is bound for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, redirect_stderr, suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from node.algorithms import Capability
from node.attacks import Attack
from node.cli import doctor_privacy
from node.cli.doctor import Finding, fault, ok, warning
from node.cli.doctor_units import examine_unit
from node.config import NodeConfig, RunConfig, TaskSection, load
from node.config.task import SUPERVISED
from node.daemon.bootstrap import resolve_paths
from node.data.profile import profiles
from node.device import pick
from node.learning import start
from node.learning.plan import Plan
from node.learning.requirements import memory_needed, room_for_blocks
from node.llm.exchange import check_there, read_key
from node.maths.backends import choose
from node.observability import status
from node.privacy.ledger import Ledger
from node.privacy.unit_task import by_unit
from node.process import available_memory, mib
from node.task import Task
from node.tasks import make
from peer.discovery import DiscoveryContext
from peer.discovery.addresses import AddressBook, own_addresses
from peer.discovery.pex import FILE
from peer.endpoint import endpoint
from peer.errors import ConfigurationError, DataError, PeerpoiseError, TaskError, TemporaryFailure
from peer.identity.keys import Identity
from peer.identity.roster import Roster

SOON_DAYS = 30
"""A certificate that expires sooner is a warning."""
TEST_SET = {
    True: "public: /metrics shows its figures, too",
    False: "private: its figures are outside of ε and stay on this host, out of /metrics",
}
"""data.test_public -> what becomes of its figures."""
DIAL_SECONDS = 2.0
TRIED = 10_000_000
"""Parameters of a model up to which gradients are tried; a larger one takes minutes."""
SEEKING = frozenset({"exchange", "mdns"})
"""Discoveries that ask other nodes."""


def examine(file: Path, settings: Sequence[str], *, dial: bool = True) -> Iterator[Finding]:
    """All findings; those that need what is broken are left out. `dial`: neighbors are called,
    too.
    """
    try:
        node = resolve_paths(load(NodeConfig, [file], settings), file.parent)
        run = load(RunConfig, [node.run], environ={})
    except PeerpoiseError as error:
        yield fault(
            "configuration", str(error), "peerpoise config check FILE, peerpoise config schema node"
        )
        return
    yield ok("configuration", f"{node.name}, run {run.run_id}")
    yield from _budget(node)
    try:
        node.check_task(run.task)
    except PeerpoiseError as error:
        yield fault("task", str(error), "peerpoise show own-task")
        return
    yield from _attack(node)
    yield from _identity(node)
    yield from _generator(node)
    yield from _addresses(node, run)
    yield from _ledger(node)
    yield from _writable("run folder", node.folder, str(node.folder))
    yield from _device(node)
    try:
        roster = Roster.load(node.roster, run.run.federation)
        plan = Plan.of(run, run.neighborhoods(roster.names))
    except PeerpoiseError as error:
        yield fault("roster", str(error), "copy roster.json and run.toml again from what pack made")
        return
    yield from _roster(node, roster)
    yield from doctor_privacy.of_run(plan, node.budget)
    yield from _peers(node, plan, roster, dial)
    if node.data.test:
        yield ok("test set", TEST_SET[node.data.test_public])
    yield from _columns(node, run.task)
    yield from examine_unit(node, run)
    yield from _task(node, plan)


def _attack(node: NodeConfig) -> Iterator[Finding]:
    """A node that is to lie to its neighbors."""
    if node.attack:
        try:
            yield warning(
                "attack",
                Attack.of(node.attack).warning,
                "remove [attack], unless this is a test of yours",
            )
        except PeerpoiseError as error:
            yield fault("attack", str(error), "peerpoise show poison")


def _budget(node: NodeConfig) -> Iterator[Finding]:
    """Has the owner of the data set what they may cost?"""
    try:
        limit = node.budget.limit
    except PeerpoiseError as error:
        yield fault("budget", str(error), "see [budget] in peerpoise show configuration")
        return
    text = "none: a throw-away ledger of public data" if node.budget.experiment else "unlimited"
    yield ok(
        "budget",
        text
        if limit is None
        else f"ε_total {limit:g} in all runs together, δ = {node.budget.delta:g}",
    )


def _identity(node: NodeConfig) -> Iterator[Finding]:
    """Key, certificate and CA: they belong together, nobody else can read the key, and the dates
    fit the clock.
    """
    own = node.identity
    try:
        identity = Identity.load(*own.files)
    except PeerpoiseError as error:
        yield fault(
            "certificate", str(error), "ask for a new one (peerpoise ca renew), or set the clock"
        )
        return
    days = (identity.expires - datetime.now(UTC)).days
    text = f"{own.certificate.name} of {identity.id[:16]}…, valid for {days} days"
    if days < SOON_DAYS:
        yield warning("certificate", text, "ask for a new one in time: peerpoise ca renew")
    else:
        yield ok("certificate", text)


def _generator(node: NodeConfig) -> Iterator[Finding]:
    """Its generation server is there, and nobody else can read the key."""
    if node.generator is None:
        return
    key = node.generator.key
    try:
        if key:
            read_key(key)
        check_there(node.generator.url)
        yield ok("generator", node.generator.url + (f", with the key in {key}" if key else ""))
    except PeerpoiseError as error:
        yield fault("generator", str(error), "see docs/reasoning.md")


def _addresses(node: NodeConfig, run: RunConfig) -> Iterator[Finding]:
    """The ports are free, or taken by this very node."""
    for what, address in (
        ("listen.address", node.listen.address),
        ("metrics.listen", node.metrics.listen),
    ):
        try:
            why = _taken(address) if address else ""
        except PeerpoiseError as error:
            yield fault(what, str(error), f"set {what} to host:port")
            continue
        if not why:
            yield ok(what, f"{address} is free" if address else "none")
        elif _runs(node, run):
            yield ok(what, f"{address} is this node's own: it is running")
        else:
            yield fault(
                what,
                f"{address} can't be listened on: {why}",
                "stop what listens there, or choose another",
            )


def _taken(address: str) -> str:
    """Why nobody can listen there; empty: one can."""
    host, port = endpoint(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _runs(node: NodeConfig, run: RunConfig) -> bool:
    for path in status.places(run.run_id, node.name, node.folder):
        with suppress(PeerpoiseError):
            return status.query(path)["node"] == node.name
    return False


def _ledger(node: NodeConfig) -> Iterator[Finding]:
    """Whole, and nobody else's at the moment."""
    try:
        name, folder = node.data.name or "experiment", node.budget.folder
    except ConfigurationError as error:
        yield fault("ledger", str(error), "set budget.ledger_dir in node.toml, or HOME")
        return
    if not Ledger.exists(folder, name):
        yield from _writable("ledger", folder, f"{folder / name}: nothing was released yet")
        return
    try:
        with closing(Ledger.open(folder, name)) as ledger:
            yield ok("ledger", f"{folder / name}: {ledger.head[0]} debits, whole")
    except TemporaryFailure as error:
        yield warning("ledger", str(error), "nothing, if that is this node's own daemon")
    except PeerpoiseError as error:
        yield fault(
            "ledger", str(error), "restore all of its files from one copy, or check the disk"
        )


def _device(node: NodeConfig) -> Iterator[Finding]:
    try:
        yield ok("device", f"{node.compute.device}: {pick(node.compute.device)}")
    except PeerpoiseError as error:
        yield fault("device", str(error), "see gpu, above")


def _writable(what: str, folder: Path, text: str) -> Iterator[Finding]:
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        yield ok(what, f"{text}; it can be written")
    else:
        yield fault(
            what,
            f"{there} can't be written by this user",
            "choose another folder, or change its owner",
        )


def _roster(node: NodeConfig, roster: Roster) -> Iterator[Finding]:
    own = node.identity
    member = roster.by_name.get(node.name)
    if member is None:
        yield fault(
            "roster",
            f"{node.name!r} is not in {node.roster}",
            f"name is one of {', '.join(roster.names)}",
        )
        return
    try:
        same = Identity.load(*own.files).id == member.id
    except PeerpoiseError:
        return
    if same:
        yield ok(
            "roster",
            f"version {roster.version}, {len(roster.members)} nodes, signed by the federation",
        )
    else:
        yield fault(
            "roster",
            f"{node.roster} has another key for {node.name} than {own.files[0]}",
            "copy this node's own folder again",
        )


def _peers(node: NodeConfig, plan: Plan, roster: Roster, dial: bool) -> Iterator[Finding]:
    """How neighbors are found, and whether they are there."""
    try:
        written = _written_down(node, roster)
    except PeerpoiseError as error:
        yield fault("discovery", str(error), "see [peers] in node.toml; peerpoise show discovery")
        return
    yield from _discovery(node, roster, written)
    if dial:
        yield from _neighbors(node, plan, roster, written)


def _discovery(node: NodeConfig, roster: Roster, written: AddressBook) -> Iterator[Finding]:
    """Is the announced address one that others can dial, and has exchange one to begin with?"""
    chosen = node.peers.discovery
    text = ", ".join(chosen)
    if SEEKING & {*chosen}:
        try:
            text += (
                "; announces "
                f"{', '.join(own_addresses(node.listen.address, node.listen.advertise))}"
            )
        except PeerpoiseError as error:
            yield warning("discovery", str(error), "see listen in node.toml")
            return
    others = [member.id for member in roster.members if member.name != node.name]
    first_contact = "exchange" in chosen and not (node.folder / FILE).exists()
    if (
        first_contact
        and "mdns" not in chosen
        and not any(
            asyncio.run(discovery.addresses(member))
            for discovery in written.discoveries.values()
            for member in others
        )
    ):
        yield warning(
            "discovery",
            "exchange needs one member's address to begin with",
            "write one into [peers.static], and static into peers.discovery",
        )
        return
    yield ok("discovery", text)


def _neighbors(
    node: NodeConfig, plan: Plan, roster: Roster, written: AddressBook
) -> Iterator[Finding]:
    """Does anybody listen where they should be? Who it is, the handshake will tell."""
    neighborhood, seeking = (
        plan.neighborhoods.get(node.name),
        " and ".join(sorted(SEEKING & {*node.peers.discovery})),
    )
    for name in neighborhood.neighbors if neighborhood else ():
        try:
            addresses = asyncio.run(written.addresses(roster.by_name[name].id))
        except PeerpoiseError as error:
            if seeking:
                yield ok(
                    "neighbor",
                    f"{name}: {seeking} will look for it"
                    + (f"; {error}" if written.discoveries else ""),
                )
            else:
                yield warning(
                    "neighbor", str(error), "see [peers] in node.toml; peerpoise show discovery"
                )
            continue
        failures = [(address, why) for address in addresses if (why := _dial(address))]
        if len(failures) < len(addresses):
            yield ok("neighbor", f"{name} listens")
        else:
            text = "; ".join(f"{address}: {why}" for address, why in failures)
            yield warning(
                "neighbor",
                f"{name} can't be reached ({text})",
                "start it, or check firewall and address",
            )


def _written_down(node: NodeConfig, roster: Roster) -> AddressBook:
    """Those discoveries that know addresses without asking other nodes.

    Raises:
        ConfigurationError: a mistake in [peers].
    """
    peers = node.peers
    around = DiscoveryContext(roster=roster, static=peers.static, dns=peers.dns)
    return AddressBook.of([name for name in peers.discovery if name not in SEEKING], around)


def _dial(address: str) -> str:
    """Why nobody can be reached there; empty: somebody can."""
    try:
        socket.create_connection(endpoint(address), timeout=DIAL_SECONDS).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _where(error: PeerpoiseError) -> str:
    """Where to fix what a task refuses."""
    if isinstance(error, TaskError):
        return "fix the task's own code"
    if isinstance(error, DataError):
        return "see data.path and data.rows in node.toml, and [task] in run.toml"
    return "see [task] in run.toml"


def _columns(node: NodeConfig, task: TaskSection) -> Iterator[Finding]:
    """What a host's own table looks like; nobody else hears of it. Why it can't be read, `_task`
    says.
    """
    path = node.data.path
    if path is None or task.data != "own" or not task.features or task.name not in SUPERVISED:
        return
    yield ok("columns", "figures of private rows, for this host only: do not pass them on")
    with suppress(PeerpoiseError):
        for profile in profiles(path, task):
            what = f"label {profile.column}" if profile.column == task.label else profile.column
            if profile.doubt:
                yield warning(what, f"{profile.doubt} ({profile.text})", profile.do)
            else:
                yield ok(what, profile.text)


def _task(node: NodeConfig, plan: Plan) -> Iterator[Finding]:
    """The data are there and fit the task; there is memory for its model."""
    warnings = io.StringIO()
    try:
        with redirect_stderr(warnings):
            task = make(plan.run, node.data)
        plan.check_task(task)
        private = by_unit(task, plan.run.task)
        if plan.run.train.start:
            start.parameters(plan.run, task.layout, torch.float32)
    except PeerpoiseError as error:
        yield fault("data", str(error), _where(error))
        return
    for line in warnings.getvalue().splitlines():
        yield warning("data", line.removeprefix("warning: "), "nothing, if that is meant")
    file = node.data.path if plan.run.task.data == "own" else node.data.rows
    digest = (
        f", sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
        if file and file.is_file()
        else ""
    )
    unit = plan.run.task.unit
    of = f" of {private.num_examples} different {unit}" if unit else ""
    yield ok(
        "data",
        f"{plan.run.task.data}: {task.num_examples} examples{of}, {task.layout.size:,} "
        f"parameters{digest}",
    )
    yield from doctor_privacy.of_data(plan, node, task, private.num_examples)
    yield from _gradients(plan, private)
    neighborhood = plan.neighborhoods.get(node.name)
    yield from _memory(plan, private, neighborhood.degree if neighborhood else 0)


def _gradients(plan: Plan, task: Task) -> Iterator[Finding]:
    """How gradients of single examples are computed: tried on made-up ones, as at the start of a
    run.
    """
    privacy = plan.run.privacy
    if privacy.mode == "none" or Capability.LAYERS in plan.algorithm.NEEDS:
        return
    if task.layout.size > TRIED:
        return
    try:
        choice = choose(privacy.backend, task, privacy.chunk)
    except PeerpoiseError as error:
        yield fault("gradients", str(error), _where(error))
        return
    if choice.slow:
        yield warning("gradients", choice.slow, "peerpoise bench, to see how slow")
    else:
        yield ok("gradients", choice.reason)


def _memory(plan: Plan, task: Task, degree: int) -> Iterator[Finding]:
    need, free = (
        memory_needed(plan.options, plan.run, task, degree),
        available_memory(),
    )
    text = f"about {mib(need)} needed" + (f", {mib(free)} available" if free is not None else "")
    try:
        room_for_blocks(plan.options, plan.run, task, degree)
    except PeerpoiseError as error:
        yield fault("memory needed", str(error), "a smaller model")
        return
    if free is not None and need > free:
        yield warning("memory needed", text, "a smaller model, fewer neighbors, or privacy.chunk")
    else:
        yield ok("memory needed", text)
