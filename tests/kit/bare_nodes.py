"""Nodes without learning: sessions over real gRPC with mTLS that find each other and shake
hands.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.discovery import DiscoveryContext
from peer.discovery.addresses import AddressBook
from peer.discovery.resolver import Resolver
from peer.identity.keys import Identity
from peer.identity.roster import Member, Roster
from peer.membership import Membership
from peer.session.mailbox import Mailbox
from peer.session.peers import PeerTable, RunParameters
from peer.session.session import Session
from peer.transport.grpc import Grpc
from peer.v1 import peer_pb2 as pb

RUN = "run"
LOOPBACK = "127.0.0.1"


NAMES = ("alice", "bob", "carol", "dave")


@dataclass(frozen=True)
class People:
    """A federation; mallory has a certificate of it, but is in no roster."""

    identities: dict[str, Identity]

    def __getitem__(self, name: str) -> Identity:
        return self.identities[name]

    def id(self, name: str) -> str:
        return self.identities[name].id

    def roster(self, **addresses: str) -> Roster:
        """All but mallory, with these addresses."""
        found = {name: (addresses[name],) if name in addresses else () for name in NAMES}
        return Roster(
            1, 0, tuple(Member(name, self.id(name), many) for name, many in found.items())
        )


class Node:
    """One member, as the daemon composes it."""

    def __init__(
        self,
        people: People,
        name: str,
        neighbors: Sequence[str],
        chosen: Sequence[str],
        *,
        roster: Roster | None = None,
        listen: str = f"{LOOPBACK}:0",
        folder: Path | None = None,
        names: Resolver | None = None,
        dns: str = "",
    ) -> None:
        self.name, self.people = name, people
        self.warnings: list[str] = []
        self.transport = Grpc(people[name], listen, reconnect=(0.1, 0.2))
        self.table = PeerTable(
            me=name,
            ids={each: people.id(each) for each in NAMES},
            parameters=RunParameters(run=RUN, roster=1),
            incarnation=time.time_ns(),
            membership=Membership.of(name, neighbors, 20.0),
        )
        around = DiscoveryContext(
            roster=roster or people.roster(),
            run=RUN,
            me=people.id(name),
            identity=people[name],
            transport=self.transport,
            folder=folder,
            dns=dns,
            missing=lambda: [it.id for it in self.table.states.values() if not it.proven],
            warn=self.warnings.append,
        )
        self.addresses = AddressBook.of(chosen, around, names)
        if "mdns" in chosen:
            self.mdns.interfaces = [LOOPBACK]  # no other network hears of it
        self.session = Session(
            self.table,
            identity=people[name],
            transport=self.transport,
            mailbox=Mailbox(),
            discovery=self.addresses,
            heartbeat_seconds=0.1,
            exchange=self.addresses.answer,
        )
        self.bound = ""

    @property
    def exchange(self) -> Any:
        return self.addresses.discoveries["exchange"]

    @property
    def mdns(self) -> Any:
        return self.addresses.discoveries["mdns"]

    async def serve(self) -> str:
        self.bound = await self.transport.serve(self.session)
        return self.bound

    @asynccontextmanager
    async def alive(self, announces: Sequence[str] | None = None) -> AsyncIterator[Node]:
        """In the background; it announces where it listens, or something else."""
        bound = self.bound or await self.serve()
        await self.addresses.announce([bound] if announces is None else announces)
        tasks = [asyncio.create_task(work) for work in (self.session.run(), self.addresses.run())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.session.close()
            await self.transport.close(0)

    def live(self, *peers: str) -> bool:
        return self.table.membership.live(1 << 20) >= {*peers}

    def error(self, peer: str) -> str:
        return self.table.membership.neighbors[peer].trouble

    def source(self, peer: str) -> str:
        contact = self.table.states[peer]
        return self.addresses.source(contact.id, contact.address)


async def until(
    condition: Callable[[], Any], seconds: float = 20.0, what: Callable[[], Any] = lambda: ""
) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come within {seconds:g} s: {what()}") from None


def announcement(identity: Identity, at: int, *addresses: str, **changes: Any) -> pb.Announcement:
    """As this identity signs it; `changes` are made after signing."""
    said = pb.Announcement(
        member=identity.id,
        issued=at,
        addresses=addresses,
        spki=identity.spki,
        signature=identity.sign_announcement(at, addresses),
    )
    for name, value in changes.items():
        if name == "addresses":
            del said.addresses[:]
            said.addresses.extend(value)
        else:
            setattr(said, name, value)
    return said


def an_id(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower().rstrip("=")
