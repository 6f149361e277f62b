"""Cuts a connection of this process that a library holds and has no way to cut, as grpc.aio has none.

The kernel is asked which descriptor leads to the other end. What it names is shut down over a copy of the descriptor,
so whatever the library does with its own meanwhile, nothing else can be hit; the library reads an end of file.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from urllib.parse import unquote

DESCRIPTORS = "/dev/fd"


def cut(other_end: str) -> bool:
    """Ends the connection to this other end, written as grpc does ("ipv4:10.0.0.1:5" or "ipv6:%5B::1%5D:5"). False:
    there is none, or this system doesn't say."""
    kind, _, where = unquote(other_end).partition(":")
    host, _, port = where.rpartition(":")
    if kind not in ("ipv4", "ipv6"):
        return False
    with suppress(ValueError, OSError):
        wanted = (_plain(host.strip("[]")), int(port))
        return any(_cut_if(int(name), wanted) for name in os.listdir(DESCRIPTORS))
    return False


def _plain(host: str) -> str:
    """One spelling, be the socket of IPv6 and its other end of IPv4 (::ffff:10.0.0.1)."""
    address = ipaddress.ip_address(host)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _cut_if(descriptor: int, wanted: tuple[str, int]) -> bool:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return False
    try:
        with socket.socket(fileno=copy) as found:
            copy = -1
            host, port = found.getpeername()[:2]
            if (_plain(host), port) == wanted:
                found.shutdown(socket.SHUT_RDWR)
                return True
    except (OSError, ValueError):  # no socket, not connected, or not to an IP
        pass
    finally:
        if copy >= 0:
            os.close(copy)
    return False
