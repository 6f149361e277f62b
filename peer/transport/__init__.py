"""How bytes travel: the interface every transport implements.

A transport moves opaque messages between node ids and knows nothing of rounds. `session.py` gives
it a `Service` to call for what arrives, and takes a `Link` per neighbor for what leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Literal, Protocol, TypeAlias

Method: TypeAlias = Literal["Handshake", "Beat", "Leave", "Peers"]
"""The unary control methods; their messages are the protobufs of peer.proto, encoded."""


class Service(Protocol):
    """What arrives. `caller` is the authenticated node id, or None on a transport without
    authentication.

    Both raise `errors.Malformed` for bytes that are no message; the transport then ends that call
    and nothing else.
    """

    async def call(self, caller: str | None, method: Method, request: bytes) -> bytes: ...

    async def transfer(self, caller: str | None, messages: AsyncIterator[bytes]) -> bytes:
        """Consumes header, frames, trailer, as far as it wants, and returns the verdict."""
        ...


class Link(Protocol):
    """The way to one neighbor: two connections, control and bulk. All of it raises
    `errors.Unreachable` on failure.
    """

    async def call(self, method: Method, request: bytes, timeout: float) -> bytes: ...  # noqa: ASYNC109

    async def transfer(self, messages: AsyncIterable[bytes]) -> bytes:
        """Sends header, frames, trailer with true back-pressure; an early verdict stops it. Returns
        the verdict.
        """
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    insecure: bool
    """True: no authentication, no encryption. Shown in logs, status, metrics and summary."""

    refused: Callable[[str | None, int], None]
    """Told of every call that is refused, or hangs: whose it is (None: nobody of the roster), the
    wire's code.
    """
    connections: int
    """How many others began, so far."""
    connections_used: int
    """Those of them on which anybody with a certificate ever called."""

    async def serve(self, service: Service) -> str:
        """Starts listening; returns the bound "host:port"."""
        ...

    def link(self, node_id: str, address: str) -> Link:
        """A link to the node with this id at this address ("host:port"); dials lazily and re-dials
        by itself.
        """
        ...

    def revoke(self, node_id: str) -> None:
        """Aborts every open call from and to this id, and refuses new ones."""
        ...

    async def close(self, grace: float) -> None:
        """Stops listening; open calls get `grace` seconds, then are aborted."""
        ...
