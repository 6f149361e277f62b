"""Tensors as payloads: what a verb says becomes bytes to send, and what comes becomes tensors. All wire arithmetic."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from node.compute import Compute
from peer.errors import Malformed
from peer.exchange import Signal
from peer.mailbox import Shape
from peer.message import DType, Layout, Payload, Peer
from peer.v1 import peer_pb2 as pb

TORCH: Mapping[DType, torch.dtype] = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


def shape_of(kind: str, layout: Layout, parts: int) -> Shape:
    return Shape(kind=kind, layout=layout.digest, parts=parts, dtype=layout.dtype, nbytes=parts * layout.nbytes)


def parts_of(tensors: Payload[Tensor]) -> int:
    """How many vectors of the layout a payload has."""
    return len(tensors) if isinstance(tensors, tuple) else 1


def as_bytes(flat: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; no copy."""
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)


def _nothing() -> None:
    pass


class Slot:
    """A flat buffer for one transfer's payload, with the checks of what arrives. It is a `peer.exchange.Sink`."""

    def __init__(self, layout: Layout, parts: int, done: Callable[[], None], *, finite: bool = True) -> None:
        self.layout, self.parts, self.finite, self._done = layout, parts, finite, done
        self.flat = torch.empty(parts * layout.size, dtype=TORCH[layout.dtype])
        self._bytes = as_bytes(self.flat)

    async def write(self, offset: int, frame: memoryview) -> None:
        """Copies the frame. Refuses what is not finite, or so large that its square is not."""
        self._bytes[offset : offset + len(frame)] = frame
        if self.finite:
            check_finite(self.flat[offset // self.flat.itemsize : (offset + len(frame)) // self.flat.itemsize])

    def done(self) -> None:
        self._done()
        self._done = _nothing  # it knows the slot: a ring, which keeps the payload until it is collected

    def tensors(self, *, as_tuple: bool) -> Tensor | tuple[Tensor, ...]:
        """The payload in float32: one vector, or a tuple of them."""
        full = self.flat.to(torch.float32)
        return full.chunk(self.parts) if as_tuple else full


def check_finite(values: Tensor) -> None:
    """One pass over the values: their sum of squares is finite exactly when they are usable.

    Raises:
        Malformed: NaN, infinity, or a norm beyond float32.
    """
    wide = values.to(torch.float32)
    if not isfinite(float(torch.dot(wide, wide))):
        raise Malformed("The tensor is not finite.", pb.CODE_MALFORMED)


class Said:
    """What a verb says, as one flat buffer that serves all neighbours. It is a `peer.exchange.Payload`.

    One that is still being filled is used in place; its steps run in the compute thread, and frames wait for them.
    """

    def __init__(self, tensors: Payload[Tensor], layout: Layout, compute: Compute) -> None:
        self.parts = parts_of(tensors)
        self.ready = 0
        self._compute = compute
        self._grown = Signal()
        self._digest: asyncio.Future[bytes] | None = None
        if isinstance(tensors, Tensor | tuple):
            pieces = tensors if isinstance(tensors, tuple) else (tensors,)
            self.flat = torch.cat([piece.detach().reshape(-1).to(TORCH[layout.dtype]) for piece in pieces])
            if self.flat.numel() != self.parts * layout.size:
                raise AssertionError(f"{self.flat.numel()} elements said, {self.parts} × {layout.size} in the layout")
            self.ready = self.flat.nbytes
        else:
            self.flat, self._steps = tensors.flat, tensors.steps
            if (self.flat.dtype, self.flat.numel()) != (TORCH[layout.dtype], layout.size):
                raise AssertionError(f"{self.flat.numel()} of {self.flat.dtype} are filled, not {layout.size}")
        self._bytes = as_bytes(self.flat)

    @property
    def complete(self) -> bool:
        return self.ready == self.flat.nbytes

    async def fill(self) -> None:
        """Fills the vector, step by step."""
        while not self.complete:
            self.ready += self.flat.itemsize * await self._compute.own(self._next)
            self._grown.notify()

    def _next(self) -> int:
        if (more := next(self._steps, None)) is None:
            raise AssertionError(f"filling ends after {self.ready} of {self.flat.nbytes} bytes")
        return more

    async def until(self, nbytes: int) -> None:
        while self.ready < nbytes:
            await self._grown.wait()

    async def frame(self, offset: int, length: int) -> bytes:
        await self.until(offset + length)
        return bytes(self._bytes[offset : offset + length])

    async def digest(self) -> bytes:
        if self._digest is None:
            self._digest = asyncio.ensure_future(self._hashed())
        return await asyncio.shield(self._digest)

    async def _hashed(self) -> bytes:
        await self.until(self.flat.nbytes)
        return await asyncio.to_thread(lambda: hashlib.sha256(self._bytes).digest())


class Stream:
    """One neighbour's part in a streaming mix: a bounded window of frames that wait to be folded."""

    def __init__(self, peer: Peer, layout: Layout, changed: Signal, window: int) -> None:
        """window: frames the neighbour can be ahead of the slowest one."""
        self.peer, self.layout, self.changed = peer, layout, changed
        self.came = 0
        """Bytes that were taken; a transfer that is sent again is ignored up to here."""
        self.ignored = False
        self._window: asyncio.Queue[Tensor] = asyncio.Queue(window)

    async def write(self, offset: int, frame: memoryview) -> None:
        if self.ignored or offset < self.came:
            return  # not folded, or sent again
        values = torch.frombuffer(bytearray(frame), dtype=TORCH[self.layout.dtype])
        check_finite(values)
        await self._window.put(values)
        if self.ignored:
            self.ignore()
        self.came = offset + len(frame)
        self.changed.notify()

    def done(self) -> None:
        self.changed.notify()

    def ignore(self) -> None:
        """Nothing of it is folded any more; what comes is read and thrown away."""
        self.ignored = True
        while not self._window.empty():
            self._window.get_nowait()

    @property
    def waiting(self) -> bool:
        """A frame is there to be folded."""
        return not self._window.empty()

    def take(self) -> Tensor:
        return self._window.get_nowait()
