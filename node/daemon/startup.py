"""What a daemon opens before its first round, piece by piece."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from node.config import NodeConfig, RunConfig
from node.daemon.snapshot import snapshot
from node.daemon.telemetry import Telemetry
from node.observability import status
from node.privacy.ledger import Ledger
from node.records.journal import header
from node.records.peer_heads import FILE
from peer import files
from peer.discovery import DiscoveryContext
from peer.discovery.addresses import AddressBook
from peer.errors import ConfigurationError, StorageError
from peer.identity.keys import Identity
from peer.identity.roster import Roster
from peer.membership import Presence
from peer.session.peers import PeerTable
from peer.transport.grpc import Grpc

LARGEST = 1 << 63
"""No message carries a larger incarnation, so a file that holds one is damaged."""


def journal_header(node: NodeConfig, run: RunConfig) -> dict[str, object]:
    """The first line of this process's journal."""
    return header(
        run.model_dump(mode="json"),
        node=node.name,
        run=run.run_id,
        seed=run.train.seed,
        threads=node.compute.threads,
    )


def serve_status(
    stack: contextlib.AsyncExitStack, node: NodeConfig, run: RunConfig, watch: Telemetry
) -> None:
    """Opens the status socket. A node that can't have one warns, and starts all the same.

    Raises:
        TemporaryFailure: this node runs already.
    """
    refusals = []
    for path in status.places(run.run_id, node.name, node.folder):
        try:
            stack.enter_context(status.serve(path, partial(snapshot, watch)))
        except StorageError as error:
            refusals.append(str(error))
            continue
        if path.parent == node.folder:
            watch.warn(
                f"The folder for status sockets can't be used; ask peerpoise status {path.parent}."
            )
        return
    watch.warn(f"peerpoise status can't ask this node. {' '.join(refusals)}")


def open_ledger(node: NodeConfig, run: RunConfig) -> Ledger | None:
    """The ledger of the data. In mode none it is opened too, and marked, for own data only.

    Raises:
        ConfigurationError: the data have no name, or own data a ledger of an experiment.
        LedgerError, TemporaryFailure: it is damaged, or in use.
    """
    if node.budget.experiment and run.task.data == "own":
        raise ConfigurationError(
            "budget.experiment is for bundled public data; own data have a lifetime ledger."
        )
    if run.privacy.mode == "none" and node.budget.experiment:
        return None
    if not node.budget.experiment and not node.data.name:
        raise ConfigurationError(
            "data.name is missing in the node's file: the privacy ledger goes by that name."
        )
    return Ledger.open(node.budget.folder, node.data.name or "experiment")


def heads_file(node: NodeConfig) -> Path:
    """Where it is kept what neighbors stated of their ledgers: beside the own one, which outlives
    runs too; with a temporary ledger in the run's folder.

    Raises:
        ConfigurationError: nothing says where ledgers lie.
    """
    if node.budget.experiment:
        return node.folder / FILE
    return node.budget.folder / f"{node.data.name}.{FILE}"


def next_incarnation(folder: Path) -> int:
    """Grows with every process of this node, also when the clock goes back. A damaged file counts
    as none.
    """
    path = folder / "incarnation"
    try:
        before = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = 0
    incarnation = max(before + 1 if before < LARGEST else 0, time.time_ns())
    files.atomic_write(path, str(incarnation).encode())
    return incarnation


def address_book(
    node: NodeConfig,
    run_id: str,
    roster: Roster,
    identity: Identity,
    transport: Grpc,
    table: PeerTable,
    warn: Callable[[str], None],
) -> AddressBook:
    """All discoveries of this node together; they look for neighbors that are not there."""
    neighbors = table.membership.neighbors

    def missing() -> list[str]:
        over = (Presence.FINISHED, Presence.REMOVED)
        gone = {peer for peer, neighbor in neighbors.items() if neighbor.presence in over}
        return [it.id for peer, it in table.states.items() if not it.proven and peer not in gone]

    context = DiscoveryContext(
        roster=roster,
        run=run_id,
        me=identity.id,
        static=node.peers.static,
        dns=node.peers.dns,
        identity=identity,
        transport=transport,
        folder=node.folder,
        missing=missing,
        warn=warn,
    )
    return AddressBook.of(node.peers.discovery, context)
