"""Where nodes can be dialled: the interface every discovery implements, and the table of them.

A discovery finds *addresses* for node ids of the roster. It decides nothing else: who takes part is the roster's
business, and who answers at an address proves it by certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from peer.errors import ConfigurationError


class Discovery(Protocol):
    async def announce(self, node_id: str, address: str) -> None:
        """Tells others that this node is reached at `address` ("host:port"); may do nothing."""
        ...

    async def addresses(self, node_id: str) -> Sequence[str]:
        """Addresses worth dialling, best first; empty while none is known."""
        ...

    async def close(self) -> None: ...


DISCOVERIES: Mapping[str, str] = {"static": "peer.discovery.static:Static"}
"""name -> module:class."""


def endpoint(address: str) -> tuple[str, int]:
    """(host, port) of "host:port", "[v6]:port".

    Raises:
        ConfigurationError: not of that form, or a port outside 0 … 65535.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare) != (bare != host) or any(c.isspace() or c in "[]/" for c in bare):
        raise ConfigurationError(f"{address!r} is not an address; write host:port, or [v6]:port for IPv6.")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} has no port between 0 and 65535 after the colon.")
    return bare, int(port)
