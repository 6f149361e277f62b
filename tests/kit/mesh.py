"""Real drivers, sessions and compute threads in one process, over any transport."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kit import clock
from kit.toys import LAYOUT
from node.config import StartSection, SyncSection
from node.rounds.driver import Driver
from node.rounds.waiting import RoundObserver
from peer.membership import Membership
from peer.neighborhood import View, Views
from peer.session.mailbox import Mailbox
from peer.session.peers import PeerTable, RunParameters
from peer.session.session import Session
from peer.transport.memory import Memory, Network


class Book:
    """Addresses that are known from the moment a node listens."""

    def __init__(self):
        self.table = {}

    async def announce(self, node_id, address):
        self.table[node_id] = address

    async def addresses(self, node_id):
        return [self.table[node_id]] if node_id in self.table else []

    async def close(self):
        pass


@dataclass
class Notes(RoundObserver):
    """What the driver told."""

    losses: list[Any] = field(default_factory=list)
    drops: list[Any] = field(default_factory=list)
    skips: list[Any] = field(default_factory=list)
    weights: dict[int, Any] = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)

    def lost(self, t, phase, peer, why):
        self.losses.append((t, peer))

    def dropped(self, t, phase, peers, after_header):
        self.drops.append((t, peers, after_header))

    def mixed(self, t, weight, distance):
        self.weights[t] = dict(weight)

    def round(self, t, seconds):
        self.rounds.append(t)

    def skipped(self, first, last):
        self.skips.append((first, last))


class Node:
    """One node of a mesh, as the daemon composes it."""

    def __init__(
        self,
        name,
        algorithm,
        neighborhood,
        *,
        transport,
        book,
        sync,
        rounds,
        layout=LAYOUT,
        incarnation=1,
        everybody=(),
        **more,
    ):
        staleness = sync.staleness if sync.mode == "async" else None
        self.name, self.neighborhood, self.transport, self.book, self.rounds = (
            name,
            neighborhood,
            transport,
            book,
            rounds,
        )
        table = PeerTable(
            me=name,
            ids=more.pop("ids", None) or {peer: peer for peer in everybody},
            parameters=RunParameters(run="run", roster=1, digests={"layout": layout.digest}),
            incarnation=incarnation,
            membership=Membership.of(name, neighborhood.neighbors, sync.deadline_s),
        )
        self.compute = clock.compute()
        self.session = Session(
            table,
            identity=more.pop("identity", None),
            transport=transport,
            mailbox=Mailbox(staleness),
            discovery=book,
            work=self.compute,
            heartbeat_seconds=more.pop("heartbeat_seconds", 0.1),
        )
        self.notes = Notes()
        self.driver = Driver(
            algorithm=algorithm,
            views=Views(View(neighborhood)),
            layout=layout,
            session=self.session,
            compute=self.compute,
            sync=sync,
            rounds=rounds,
            watcher=self.notes,
            **more,
        )

    async def live(self, first=0, start=None):
        """From listening to the last round; leaves nothing behind, also when cancelled."""
        self.session.progress.first = first
        await self.book.announce(
            self.session.table.ids[self.name], await self.transport.serve(self.session)
        )
        keeping = asyncio.create_task(self.session.run())
        try:
            await self.driver.wait_for_neighbors(start or StartSection(timeout_s=20))
            await self.driver.run(first)
            await self.session.goodbye(finished=True)
            await self.driver.linger(5.0)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self.session.close()
            await self.transport.close(0.1)
            self.compute.stop()
            await self.compute.join(5.0)


def mesh(
    algorithms,
    neighborhoods,
    rounds,
    *,
    network=None,
    transports=None,
    sync=None,
    identities=None,
    **more,
):
    """The nodes of a mesh by name, not yet alive."""
    network, book = network or Network(), Book()
    sync = sync or SyncSection(deadline_s=30)
    transports = transports or {name: Memory(network, name) for name in neighborhoods}
    nodes = {}
    for name, algorithm in algorithms.items():
        nodes[name] = Node(
            name,
            algorithm,
            neighborhoods[name],
            transport=transports[name],
            book=book,
            sync=sync,
            rounds=rounds,
            everybody=tuple(neighborhoods),
            identity=(identities or {}).get(name),
            **more,
        )
    return nodes


async def play(nodes, **more):
    """All nodes to their end."""
    async with asyncio.TaskGroup() as tasks:
        for node in nodes.values():
            tasks.create_task(node.live(**more))


@asynccontextmanager
async def alive(nodes, **more):
    """All nodes in the background; name -> task."""
    tasks = {name: asyncio.create_task(node.live(**more)) for name, node in nodes.items()}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
