"""Members gone bad: nodes with valid keys that lie in what they say of themselves. In one process,
over memory.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from peer import codec
from peer.message import Peer
from peer.session.interfaces import FrameSource, Key, Role, Shape, Work
from peer.session.peers import LocalProgress
from peer.v1 import peer_pb2 as pb


class Lie(Enum):
    """How a member claims to be in another round than it is."""

    AT_THE_START = "in its first handshakes"
    IN_A_NEW_HANDSHAKE = "in the handshakes after it dropped its edges in the middle of the run"
    IN_BEATS = "in beats"


def claim(node: Any, lie: Lie, round: int, *, after: Callable[[], bool]) -> None:
    """`node` (of the conformance tests' mesh) claims to be in `round`, as soon as `after` is
    true.
    """
    session, due = node.session, after if lie is not Lie.AT_THE_START else lambda: True

    class Ahead(LocalProgress):
        @property
        def earliest(self) -> int:
            return round if lie is not Lie.IN_BEATS and due() else super().earliest

    pulse = session.heartbeats.make
    session.progress.__class__ = Ahead
    dropped = False

    def heartbeat(to: str) -> pb.Beat:
        nonlocal dropped
        made: pb.Beat = pulse(to)
        if lie is Lie.IN_BEATS and due():
            made.round = round
        if lie is Lie.IN_A_NEW_HANDSHAKE and due() and not dropped:
            dropped = True
            for peer in session.table.membership.neighbors:
                session.table.lose(peer, "So that there is a new handshake.")
        return made

    session.heartbeats.make = heartbeat


class Moved:
    """A payload of float32, each of whose numbers is moved by so much, with a note on it."""

    def __init__(
        self, payload: FrameSource, nbytes: int, by: float = 0.25, note: bytes = b""
    ) -> None:
        self.payload, self.nbytes, self.by, self.note = payload, nbytes, by, note

    async def frame(self, offset: int, length: int) -> bytes:
        values = torch.frombuffer(
            bytearray(await self.payload.frame(offset, length)), dtype=torch.float32
        )
        return (values + self.by).numpy().tobytes()

    async def digest(self) -> bytes:
        hashed = hashlib.sha256()
        for offset, length in codec.frames(self.nbytes):
            hashed.update(await self.frame(offset, length))
        hashed.update(self.note)
        return hashed.digest()


def tells_otherwise(
    node: Any, to: Peer, roles: frozenset[Role], first: int, *, by: float = 0.25, note: bytes = b""
) -> None:
    """From round `first` on `node` tells neighbor `to` other things than all the others, properly
    signed: its numbers are moved by `by`, and it writes a note on them.
    """
    transfers = node.session.transfers
    deliver = transfers.deliver

    async def other(peer: Peer, key: Key, shape: Shape, payload: FrameSource, **more: Any) -> bool:
        if peer == to and key.role in roles and key.round >= first:
            payload = Moved(payload, shape.nbytes, by, note)
        delivered: bool = await deliver(peer, key, shape, payload, **more)
        return delivered

    transfers.deliver = other


class Busy:
    """Work that moves whenever somebody looks."""

    def __init__(self, honest: Work) -> None:
        self._honest, self._looks = honest, 0

    @property
    def progress(self) -> int:
        self._looks += 1
        return self._honest.progress + self._looks


def sends_nothing(node: Any, first: int) -> None:
    """From round `first` on `node` shows progress in every beat, and sends nothing."""
    transfers, progress = node.session.transfers, node.session.progress
    deliver = transfers.deliver

    async def never(peer: Peer, key: Key, shape: Shape, payload: FrameSource, **more: Any) -> bool:
        if key.round < first:
            told: bool = await deliver(peer, key, shape, payload, **more)
            return told
        await asyncio.Event().wait()
        return False

    transfers.deliver, progress.work = never, Busy(progress.work)
