"""The small interfaces between a session (bytes) and whoever does the arithmetic (the node's
driver).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from peer.message import Peer
from peer.v1 import peer_pb2 as pb


class Sink(Protocol):
    """Where one transfer's payload goes."""

    async def write(self, offset: int, frame: memoryview) -> None:
        """The next frame; waiting here is back-pressure on the sender.

        Raises:
            Malformed: the payload is unusable (not finite, say); the transfer is refused.
        """
        ...

    def done(self) -> None:
        """The whole payload came."""
        ...


class Inbox(Protocol):
    """What an open phase does with an admitted transfer."""

    def sink(self, peer: Peer, round: int, heard: frozenset[Peer], withheld: bool) -> Sink: ...


class Payload(Protocol):
    """What a transfer sends; the same object serves all neighbors."""

    async def frame(self, offset: int, length: int) -> bytes:
        """These bytes; waits until they are computed."""
        ...

    async def digest(self) -> bytes:
        """SHA-256 of all of it."""
        ...


class Witness(Protocol):
    """Signed statements of nodes about records they only append to (`pb.SignedHead`), which their
    neighbors remember: a node that was set back to an older copy of its record is confronted with
    what it once said.
    """

    def current(self) -> pb.SignedHead:
        """What this node says of its own record now."""
        ...

    def observe(self, peer: Peer, statement: pb.SignedHead) -> pb.SignedHead:
        """Remembers what a neighbor says of its record; returns the highest remembered before."""
        ...

    def challenge(self, statement: pb.SignedHead) -> None:
        """A neighbor claims to remember this of this node's record. It may lie."""
        ...


class _NoWitness:
    """Nothing is said or remembered."""

    def current(self) -> pb.SignedHead:
        return pb.SignedHead()

    def observe(self, peer: Peer, statement: pb.SignedHead) -> pb.SignedHead:
        return pb.SignedHead()

    def challenge(self, statement: pb.SignedHead) -> None: ...


NO_WITNESS = _NoWitness()


class SessionObserver:
    """What a session tells whoever watches. Every method does nothing; metrics override them."""

    def bytes_moved(self, peer: Peer, direction: str, kind: str, count: int) -> None: ...

    def wire_error(self, peer: Peer, code: int) -> None: ...

    def rejected(self, peer: Peer, code: int) -> None:
        """What the neighbor sent was no usable payload: not finite, or broken."""

    def contradicted(
        self, peer: Peer, told_by: Peer, public: bytes, one: pb.Statement, other: pb.Statement
    ) -> None:
        """The neighbor told different neighbors different things: both statements are signed by its
        `public` key.
        """

    def round_trip(self, peer: Peer, seconds: float) -> None: ...

    def presence(self, peer: Peer, live: bool) -> None: ...

    def refused(self, peer: Peer, code: int) -> None:
        """A member's call or transfer was refused."""

    def newer_roster(self, peer: Peer, version: int) -> None:
        """The neighbor holds a higher version than this node."""


class Signal:
    """Wakes everybody who waits when something changed. Check your condition, then wait, without
    awaiting between.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Returns at the next `notify`, or after so many seconds."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


class NoPayload:
    """The payload of a withheld answer."""

    async def frame(self, offset: int, length: int) -> bytes:
        raise AssertionError("a withheld answer has no payload")

    async def digest(self) -> bytes:
        raise AssertionError("a withheld answer has no payload")


class DiscardSink:
    """The sink of a withheld answer: nothing follows."""

    async def write(self, offset: int, frame: memoryview) -> None:
        raise AssertionError("a withheld answer has no payload")

    def done(self) -> None: ...
