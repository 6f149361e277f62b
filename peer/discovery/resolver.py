"""Host names to IP addresses, while others work: each look-up has a thread that nobody waits for at
the end.

gRPC could look names up itself, but waits half a minute or more before it does so again, tells
people little when it fails, and keeps to itself which address it tried.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from peer.codec import printable
from peer.endpoint import endpoint, format_endpoint
from peer.errors import Unreachable

SECONDS = 5.0
"""A look-up that takes longer has failed; the next one finds its answer, if it came."""
MOST = 16
"""Addresses of one name that are used."""
OPEN = 8
"""Look-ups for one node at a time: one that announces ever new names of a silent name server gets
no more threads.
"""


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Resolver:
    """One look-up of a name at a time, however many ask."""

    def __init__(
        self, look_up: Callable[..., list[Any]] = socket.getaddrinfo, seconds: float = SECONDS
    ) -> None:
        """`seconds`: a look-up that takes longer has failed."""
        self._look_up, self._seconds = look_up, seconds
        self._open: dict[str, asyncio.Future[list[str]]] = {}
        self._of: Counter[str] = Counter()

    async def resolve(self, address: str, owner: str = "") -> Sequence[str]:
        """The address with every IP of its host, in the order in which the system gives them.
        `owner`: whose it is.

        Raises:
            Unreachable: the name can't be found now, or too many of its owner's are looked up; a
                sentence says so.
        """
        host, port = endpoint(address)
        if is_ip(host):
            return (address,)
        future = self._open.get(host) or self._begin(host, owner)
        try:
            async with asyncio.timeout(self._seconds):
                ips = await asyncio.shield(future)
        except TimeoutError:
            raise Unreachable(
                f"The name {host} can't be looked up: the name server does not answer."
            ) from None
        except OSError as error:
            why = printable(error.strerror or str(error))
            raise Unreachable(f"The name {host} can't be found ({why}).") from None
        return [format_endpoint(ip, port) for ip in ips]

    def _begin(self, host: str, owner: str) -> asyncio.Future[list[str]]:
        if self._of[owner] >= OPEN:
            raise Unreachable(
                f"The name {host} is not looked up: {OPEN} others of that node's still are."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        future.add_done_callback(lambda _: self._open.pop(host, None))
        future.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # seen, if nobody waits any more
        future.add_done_callback(lambda _: self._of.subtract([owner]))
        self._open[host] = future
        self._of[owner] += 1

        def settle(answer: list[str] | OSError) -> None:
            if future.done():
                return
            if isinstance(answer, OSError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        def work() -> None:
            answer: list[str] | OSError
            try:
                answer = list(
                    dict.fromkeys(
                        each[4][0] for each in self._look_up(host, None, type=socket.SOCK_STREAM)
                    )
                )
            except OSError as error:
                answer = error
            except UnicodeError:
                answer = OSError(0, "it is no host name")
            try:
                loop.call_soon_threadsafe(
                    settle, answer[:MOST] if isinstance(answer, list) else answer
                )
            except RuntimeError:
                pass  # the loop has ended

        threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
        return future
