"""What grpc.aio has no way to do: cut a connection, and say why there is none.

To cut one, the kernel is asked which descriptors lead to the other ends. What it names is shut down
over a copy of the descriptor, so whatever the library does with its own meanwhile, nothing else can
be hit; the library reads an end of file.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import unquote

from peer.endpoint import endpoint

DESCRIPTORS = "/dev/fd"
TRY_SECONDS = 3.0
"""For a connection to be made: the system asks a second time after one second."""


async def why_unreachable(address: str) -> str:
    """Why no connection can be made to host:port now, in a sentence; empty: one can."""
    host, port = endpoint(address)
    try:
        async with asyncio.timeout(TRY_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"Nothing answers at {address}: a firewall, a wrong address, or the machine is off."
    except ConnectionRefusedError:
        return f"Nobody listens at {address}."
    except socket.gaierror:
        return f"The name {host} can't be found."
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else "it broke"
        return f"{address} can't be reached ({why}): a firewall or a wrong address."
    writer.close()
    return ""


def cut(other_ends: Collection[str], port: int) -> int:
    """Ends the connections that came to this port from these other ends, written as grpc does
    ("ipv4:10.0.0.1:5" or "ipv6:%5B::1%5D:5"); how many there were, as far as this system says.
    Connections that this process made stay, be they to the same end. It looks at every descriptor,
    which takes milliseconds where there are many."""
    wanted = {end for text in other_ends if (end := _parsed(text)) is not None}
    with suppress(OSError):
        return (
            sum(_cut_if(int(name), wanted, port) for name in os.listdir(DESCRIPTORS))
            if wanted
            else 0
        )
    return 0


def _parsed(other_end: str) -> tuple[str, int] | None:
    kind, _, where = unquote(other_end).partition(":")
    host, _, port = where.rpartition(":")
    with suppress(ValueError):
        return (_plain(host.strip("[]")), int(port)) if kind in ("ipv4", "ipv6") else None
    return None


def _plain(host: str) -> str:
    """One spelling, be the socket of IPv6 and its other end of IPv4 (::ffff:10.0.0.1)."""
    address = ipaddress.ip_address(host)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _cut_if(descriptor: int, wanted: Collection[tuple[str, int]], port: int) -> bool:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return False
    try:
        with socket.socket(fileno=copy) as connection:
            copy = -1
            host, theirs = connection.getpeername()[:2]
            if (_plain(host), theirs) in wanted and connection.getsockname()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)
                return True
    except (OSError, ValueError):  # no socket, not connected, or not to an IP
        pass
    finally:
        if copy >= 0:
            os.close(copy)
    return False
