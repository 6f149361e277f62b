"""Addresses as people write them: host:port, or [v6]:port."""

from __future__ import annotations

from peer.errors import ConfigurationError

WILDCARD_HOSTS = ("0.0.0.0", "::")
"""Hosts to listen at, not to dial."""


def endpoint(address: str) -> tuple[str, int]:
    """(host, port) of "host:port", "[v6]:port".

    Raises:
        ConfigurationError: not of that form, or a port outside 0 … 65535.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not colon
        or not bare
        or (":" in bare) != (bare != host)
        or any(c.isspace() or c in "[]/" for c in bare)
    ):
        raise ConfigurationError(
            f"{address!r} is not an address; write host:port, or [v6]:port for IPv6."
        )
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} has no port between 0 and 65535 after the colon.")
    return bare, int(port)


def format_endpoint(host: str, port: int) -> str:
    """The reverse of `endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
