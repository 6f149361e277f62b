"""Interfaces between a session, which moves bytes, and the node that does the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from peer.message import DType, Peer
from peer.v1 import peer_pb2 as pb


class Role(IntEnum):
    """Numbers as in peer.proto."""

    SAY = 1
    QUESTION = 2
    ANSWER = 3
    MIX = 4


@dataclass(frozen=True, slots=True, order=True)
class Key:
    round: int
    phase: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is expected of, or announced by, a transfer's payload."""

    kind: str
    layout: bytes
    parts: int
    dtype: DType
    nbytes: int


class Sink(Protocol):
    """Where one transfer's payload goes."""

    async def write(self, offset: int, frame: memoryview) -> None:
        """The next frame; waiting here is back-pressure on the sender.

        Raises:
            Malformed: the payload is unusable (not finite, say); the transfer is refused.
        """
        ...


class OpenPhase(Protocol):
    """A verb of this node's present round for whose messages transfers are let in."""

    @property
    def key(self) -> Key: ...

    @property
    def shape(self) -> Shape:
        """What each neighbor's payload has to look like."""
        ...

    @property
    def expected(self) -> frozenset[Peer]:
        """Whose transfers are let in."""
        ...

    @property
    def opened(self) -> float:
        """When, in seconds of the event loop's clock."""
        ...

    def receive(self, peer: Peer, message: Incoming) -> Sink:
        """Where the payload of a transfer goes whose header was let in."""
        ...

    def complete(self, peer: Peer, message: Incoming, sink: Sink) -> None:
        """All of it came, into this sink."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What the header of a transfer says beside its key and shape."""

    round: int
    heard: frozenset[Peer] = frozenset()
    """Whom the sender heard in the phase before."""
    withheld: bool = False
    """No payload follows."""
    note: bytes = b""


class FrameSource(Protocol):
    """The bytes of what this node says; the same object serves all neighbors."""

    @property
    def note(self) -> bytes:
        """Bytes that travel in the header."""
        ...

    async def frame(self, offset: int, length: int) -> bytes:
        """These bytes; waits until they are computed."""
        ...

    async def digest(self) -> bytes:
        """SHA-256 of all of it, and of the note behind it."""
        ...


class Work(Protocol):
    """This node's own computing, as heartbeats tell of it."""

    @property
    def progress(self) -> int:
        """Grows with every piece of work that is done."""
        ...


class NoWork:
    """Of a session that nobody computes beside."""

    progress = 0


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
    """Neither states nor remembers anything."""

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

    def software(self, peer: Peer, other: str, same_code: bool) -> None:
        """The neighbor runs this `other` version of the software (empty: the same), and the same
        own code or not.
        """

    def newer_roster(self, peer: Peer, version: int) -> None:
        """The neighbor holds a higher version than this node."""


class NoPayload:
    """The payload of a withheld answer."""

    note = b""

    async def frame(self, offset: int, length: int) -> bytes:
        raise AssertionError("a withheld answer has no payload")

    async def digest(self) -> bytes:
        raise AssertionError("a withheld answer has no payload")


class DiscardSink:
    """The sink of a withheld answer: nothing follows."""

    async def write(self, offset: int, frame: memoryview) -> None:
        raise AssertionError("a withheld answer has no payload")
