"""Tensors as payloads: what a verb says becomes bytes to send, and what comes becomes tensors. All
wire arithmetic.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from math import inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from node.rounds.compute import Compute
from peer.errors import Diverged, Malformed
from peer.message import DType, Layout, Payload, Peer
from peer.session.interfaces import Shape
from peer.session.signal import Signal
from peer.v1 import peer_pb2 as pb

TORCH: Mapping[DType, torch.dtype] = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


def shape_of(kind: str, layout: Layout, parts: int) -> Shape:
    return Shape(
        kind=kind,
        layout=layout.digest,
        parts=parts,
        dtype=layout.dtype,
        nbytes=parts * layout.nbytes,
    )


def parts_of(tensors: Payload[Tensor]) -> int:
    """How many vectors of the layout a payload has."""
    return len(tensors) if isinstance(tensors, tuple) else 1


def as_bytes(flat: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; no copy."""
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)


class Size:
    """The norm of a payload that comes in pieces, held to a largest one."""

    def __init__(self, most: float = inf) -> None:
        self.most, self._squares = most, 0.0

    def add(self, values: Tensor) -> None:
        """Raises Malformed: NaN, infinity, or a norm beyond the largest, or beyond float32."""
        wide = values.to(torch.float32)
        self._squares += float(torch.dot(wide, wide))
        if not isfinite(self._squares) or self.norm > self.most:
            raise Malformed(
                "The tensor is not finite, or larger than an honest node's can be.",
                pb.CODE_MALFORMED,
            )

    @property
    def norm(self) -> float:
        return sqrt(self._squares)


class ReceiveBuffer:
    """A flat buffer for one transfer's payload, with the checks of what arrives: a
    `peer.session.interfaces.Sink`.
    """

    def __init__(self, layout: Layout, parts: int, *, most: float | None = inf) -> None:
        """most: the largest norm; None: it may be anything."""
        self.layout, self.parts = layout, parts
        self.size = None if most is None else Size(most)
        self.flat = torch.empty(parts * layout.size, dtype=TORCH[layout.dtype])
        self.note = b""
        """What its sender wrote on it, known when it is complete."""
        self._bytes = as_bytes(self.flat)

    async def write(self, offset: int, frame: memoryview) -> None:
        """Copies the frame. Refuses what is not finite, or too large."""
        self._bytes[offset : offset + len(frame)] = frame
        if self.size is not None:
            self.size.add(
                self.flat[
                    offset // self.flat.itemsize : (offset + len(frame)) // self.flat.itemsize
                ]
            )

    def tensors(self, *, as_tuple: bool) -> Tensor | tuple[Tensor, ...]:
        """The payload in float32: one vector, or a tuple of them."""
        full = self.flat.to(torch.float32)
        return full.chunk(self.parts) if as_tuple else full


class SendBuffer:
    """What a verb says, as one flat buffer that serves all neighbors. It is a
    `peer.session.interfaces.FrameSource`.

    One that is still being filled is used in place; its steps run in the compute thread, and frames
    wait for them.
    """

    def __init__(
        self,
        tensors: Payload[Tensor],
        layout: Layout,
        compute: Compute,
        *,
        most: float | None = None,
        stated: bool = True,
        note: bytes = b"",
    ) -> None:
        """Args:
            most: the largest norm that an honest node may have; None: it may be anything.
            stated: its digest will be signed, so it is computed here, in the compute thread: later
                it would wait behind answers.
            note: bytes that travel in the header.

        Raises:
            Diverged: it is larger, or not finite. Nothing of it has left.
        """
        self.parts, self.note = parts_of(tensors), note
        self.ready = 0
        self._size = None if most is None else Size(most)
        self._compute = compute
        self._grown = Signal()
        self._hash = hashlib.sha256() if stated else None
        if isinstance(tensors, Tensor | tuple):
            pieces = tensors if isinstance(tensors, tuple) else (tensors,)
            self.flat = torch.cat(
                [piece.detach().reshape(-1).to(TORCH[layout.dtype]) for piece in pieces]
            )
            if self.flat.numel() != self.parts * layout.size:
                raise AssertionError(
                    f"{self.flat.numel()} elements said, {self.parts} × {layout.size} in the layout"
                )
            self._take(self.flat)
            self.ready = self.flat.nbytes
        else:
            self.flat, self._steps = tensors.flat, tensors.steps
            if (self.flat.dtype, self.flat.numel()) != (TORCH[layout.dtype], layout.size):
                raise AssertionError(
                    f"{self.flat.numel()} of {self.flat.dtype} are filled, not {layout.size}"
                )
        self._bytes = as_bytes(self.flat)

    @property
    def complete(self) -> bool:
        return self.ready == self.flat.nbytes

    async def fill(self) -> None:
        """Fills the vector, step by step."""
        while not self.complete:
            self.ready += self.flat.itemsize * await self._compute.run(self._next)
            self._grown.notify()

    def _next(self) -> int:
        if (more := next(self._steps, None)) is None:
            raise AssertionError(f"filling ends after {self.ready} of {self.flat.nbytes} bytes")
        start = self.ready // self.flat.itemsize
        self._take(self.flat[start : start + more])
        return more

    def _take(self, values: Tensor) -> None:
        """The next values are final."""
        try:
            if self._size is not None:
                self._size.add(values)
        except Malformed:
            raise Diverged from None
        if self._hash is not None:
            self._hash.update(as_bytes(values))

    async def until(self, nbytes: int) -> None:
        while self.ready < nbytes:
            await self._grown.wait()

    async def frame(self, offset: int, length: int) -> bytes:
        await self.until(offset + length)
        return bytes(self._bytes[offset : offset + length])

    async def digest(self) -> bytes:
        await self.until(self.flat.nbytes)
        assert self._hash is not None, "nobody is to sign it"
        signed = self._hash.copy()
        signed.update(self.note)
        return signed.digest()


class FrameQueue:
    """One neighbor's part in a streaming mix: a bounded window of frames that wait to be folded."""

    def __init__(
        self, peer: Peer, layout: Layout, changed: Signal, window: int, *, most: float = inf
    ) -> None:
        """window: frames the neighbor can be ahead of the slowest one. most: the largest norm."""
        self.peer, self.layout, self.changed, self.size = peer, layout, changed, Size(most)
        self.came = 0
        """Bytes that were taken; a transfer that is sent again is ignored up to here."""
        self.ignored = False
        self._window: asyncio.Queue[Tensor] = asyncio.Queue(window)

    async def write(self, offset: int, frame: memoryview) -> None:
        if self.ignored or offset < self.came:
            return  # not folded, or sent again
        values = torch.frombuffer(bytearray(frame), dtype=TORCH[self.layout.dtype])
        self.size.add(values)
        await self._window.put(values)
        if self.ignored:
            self.ignore()
        self.came = offset + len(frame)
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
