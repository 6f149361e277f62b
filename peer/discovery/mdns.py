"""Addresses on the local network by multicast DNS (RFC 6762, 6763); the only file that meets
zeroconf. Opt-in.

A node announces one service: the first characters of its id and its port, nothing else. Whoever is
on the network can announce anything, so what is heard is a hint: only services named after the id
of a member are looked at, all other records are dropped from zeroconf's cache at once, few
addresses are kept and for a short time, goodbyes are not believed, and names are never logged. A
node that can't connect otherwise tries the hints in turn; what answers there has to show the
certificate of the id that was dialed, before anything is sent.

Not covered: somebody on the network can keep mDNS from working (by floods under a member's own
prefix), and see which machines take part. Interfaces that appear later are not used until the node
is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from zeroconf import Error, InterfaceChoice, IPVersion, RecordUpdateListener
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from peer.codec import printable
from peer.discovery import DiscoveryContext
from peer.endpoint import endpoint, format_endpoint
from peer.errors import Unreachable

TYPE = "_peerpoise._tcp.local."
PREFIX = 16
"""Characters of the id that are announced: 80 bits, enough to find it in a roster."""
OURS = re.compile(rf"[a-z2-7]{{{PREFIX}}}-[0-9a-f]{{8}}\.({re.escape(TYPE)}|local\.)")
"""Names of our services and their hosts, which are made of the id and chance: safe to handle and
print.
"""
ADDRESSES = 256
"""Addresses remembered at once; a further one takes the place of the one heard longest ago."""
PER_MEMBER, PER_SERVICE = 8, 4
"""Addresses remembered at once under one member's prefix, and taken of one service."""
TTL = 120.0
"""Seconds after which what was not heard again is forgotten, whatever the announcement says."""
ASK_EVERY = 12.0
"""Seconds between two series of questions while a neighbor is looked for; a series asks at 0, 1, 5
and 14 s.
"""
TICK = 0.5
REQUESTS = 8
"""Services at once of which missing records are asked for."""
REQUEST_MS = 2000
GOODBYE_SECONDS = 1.0


class Mdns:
    """One node's mDNS."""

    def __init__(self, context: DiscoveryContext, interfaces: Collection[str] = ()) -> None:
        """`interfaces`: IP addresses of those to use; none: all of this machine."""
        self.context, self.interfaces = context, interfaces
        self.heard = HintCache({member.id for member in context.roster.members} - {context.me})
        self._own: tuple[str, ...] = ()

    @classmethod
    def of(cls, context: DiscoveryContext) -> Mdns:
        return cls(context)

    async def announce(self, addresses: Sequence[str]) -> None:
        self._own = tuple(addresses)

    async def addresses(self, node_id: str) -> Sequence[str]:
        return self.heard.addresses(node_id, asyncio.get_running_loop().time())

    def missing(self, node_id: str) -> str:
        return "nobody on this network announces one"

    async def run(self) -> None:
        try:
            await self._run()
        except (OSError, Error) as error:
            why = printable(getattr(error, "strerror", None) or str(error))
            self.context.warn(
                f"mDNS can't be used on this machine ({why}); take mdns out of peers.discovery."
            )

    async def _run(self) -> None:
        service = self._open()
        ear = RecordListener(service, self.heard)
        try:
            if info := await self._info():
                # nobody is asked whether the name is free: it is drawn by chance, and whoever says
                # no could be lying
                await (await service.async_register_service(info, cooperating_responders=True))
            await self._look(service)
        finally:
            await ear.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await service.async_close()

    def _open(self) -> AsyncZeroconf:
        chosen: Any = list(self.interfaces) or InterfaceChoice.All
        if not self.interfaces:
            with contextlib.suppress(OSError):  # there is no IPv6 on this machine
                return AsyncZeroconf(interfaces=chosen, ip_version=IPVersion.All)
        return AsyncZeroconf(interfaces=chosen, ip_version=IPVersion.V4Only)

    async def _info(self) -> AsyncServiceInfo | None:
        """What is announced. An advertised host name is looked up: mDNS carries IP addresses."""
        endpoints: list[tuple[str, int]] = []
        for address in self._own:
            try:
                assert self.context.resolve is not None
                endpoints += [endpoint(each) for each in await self.context.resolve(address)]
            except Unreachable as error:
                self.context.warn(f"{error} It is not announced by mDNS.")
        if not endpoints:
            return None
        prefix, port = self.context.me[:PREFIX], endpoints[0][1]
        instance = f"{prefix}-{secrets.token_hex(4)}"
        return AsyncServiceInfo(
            TYPE,
            f"{instance}.{TYPE}",
            port=port,
            properties={"id": prefix, "port": str(port)},
            server=f"{instance}.local.",
            parsed_addresses=[host for host, _ in endpoints],
        )

    async def _look(self, service: AsyncZeroconf) -> None:
        """Asks while a neighbor is looked for, in series; listens all the time."""
        clock = asyncio.get_running_loop().time
        browser, due = None, 0.0
        try:
            while True:
                if self.context.missing():
                    if clock() >= due:
                        if browser is not None:
                            await browser.async_cancel()
                        browser = AsyncServiceBrowser(service.zeroconf, TYPE, handlers=[_nothing])
                        due = clock() + ASK_EVERY
                elif browser is not None:
                    await browser.async_cancel()
                    browser, due = None, 0.0
                await asyncio.sleep(TICK)
        finally:
            if browser is not None:
                await browser.async_cancel()


def _nothing(**_: object) -> None:
    """A browser only asks here; `RecordListener` hears the answers."""


class HintCache:
    """What was announced of members, within limits: state without network; `now` in seconds of any
    one clock.
    """

    def __init__(self, members: Collection[str]) -> None:
        self._ids = {node_id[:PREFIX]: node_id for node_id in members}
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()
        """(node id, address) -> when it is forgotten; heard longest ago first."""

    def __len__(self) -> int:
        return len(self._until)

    def member(self, name: str) -> str | None:
        """Whose service, or whose host, has this name, as it says; names of any other form are
        nobody's.
        """
        return self._ids.get(name[:PREFIX]) if OURS.fullmatch(name) else None

    def note(self, name: str, port: int, hosts: Sequence[str], now: float) -> None:
        """A service was heard. What was heard before stays: it may be the honest one, under the
        very same name.
        """
        node_id = self.member(name)
        if node_id is None or not 0 < port < 1 << 16:
            return
        for host in reversed([each for each in hosts if _dialable(each)][:PER_SERVICE]):
            self._until.pop((node_id, format_endpoint(host, port)), None)
            of_it = [key for key in self._until if key[0] == node_id]
            if len(of_it) >= PER_MEMBER:
                del self._until[of_it[0]]
            elif len(self._until) >= ADDRESSES:
                self._until.popitem(last=False)
            self._until[node_id, format_endpoint(host, port)] = now + TTL

    def addresses(self, node_id: str, now: float) -> Sequence[str]:
        """The newest first."""
        for key in [key for key, until in self._until.items() if until < now]:
            del self._until[key]
        return tuple(address for owner, address in reversed(self._until) if owner == node_id)


def _dialable(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified or address.is_link_local)


class RecordListener(RecordUpdateListener):
    """Hears all that zeroconf hears, notes services of members, and makes zeroconf forget all
    others.
    """

    def __init__(self, service: AsyncZeroconf, heard: HintCache) -> None:
        super().__init__()
        self.zc, self.heard = service.zeroconf, heard
        self._names: dict[str, None] = {}
        self._foreign: list[Any] = []
        self._requests: dict[str, asyncio.Task[None]] = {}
        self.zc.async_add_listener(self, None)

    def async_update_records(self, zc: Any, now: float, records: list[Any]) -> None:
        """Before zeroconf's cache has them."""
        for record in (update.new for update in records):
            name = getattr(record, "alias", record.name)
            if self.heard.member(name) is None:
                self._foreign.append(record)
            elif name.endswith(f".{TYPE}"):
                self._names[name] = None
            else:
                self._names |= dict.fromkeys(self._of_host(name))

    def _of_host(self, name: str) -> Iterator[str]:
        """Names of the services on this host."""
        for record in self.zc.cache.async_entries_with_server(name):
            if self.heard.member(record.name) is not None:
                yield record.name

    def async_update_records_complete(self) -> None:
        """After zeroconf's cache has them."""
        names, self._names = list(self._names)[:ADDRESSES], {}
        foreign, self._foreign = self._foreign, []
        cache = self.zc.cache
        cache.async_remove_records(
            [record for record in foreign if cache.async_get_unique(record) is not None]
        )
        for name in names:
            info = AsyncServiceInfo(TYPE, name)
            if info.load_from_cache(self.zc):
                self._note(info)
            elif name not in self._requests and len(self._requests) < REQUESTS:
                self._requests[name] = asyncio.ensure_future(self._request(info))
        self._bound()

    async def _request(self, info: AsyncServiceInfo) -> None:
        try:
            if await info.async_request(self.zc, REQUEST_MS):
                self._note(info)
        finally:
            del self._requests[info.name]

    def _note(self, info: AsyncServiceInfo) -> None:
        properties = info.decoded_properties
        if info.port and properties == {"id": info.name[:PREFIX], "port": str(info.port)}:
            now = asyncio.get_running_loop().time()
            self.heard.note(info.name, info.port, info.parsed_addresses(), now)

    def _bound(self) -> None:
        """Of members, too, zeroconf keeps no more than there can be; answers that it knows it would
        not get again.
        """
        cache = self.zc.cache
        known = [record for many in list(cache.cache.values()) for record in many]
        pointers = [record for record in known if hasattr(record, "alias")]
        cache.async_remove_records(known if len(known) > 8 * ADDRESSES else pointers)

    async def close(self) -> None:
        self.zc.async_remove_listener(self)
        for task in tuple(self._requests.values()):
            task.cancel()
        await asyncio.gather(*self._requests.values(), return_exceptions=True)
