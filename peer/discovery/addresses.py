"""All discoveries of one node together, and what it can say of its own address.

A session asks here where a member can be dialed and gets IP addresses only: host names are looked
up on the way, again each time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import ifaddr

from peer.codec import MAX_ADDRESSES, is_address
from peer.discovery import DISCOVERIES, AnswersMembers, Discovery, DiscoveryContext, find
from peer.discovery.resolver import Resolver, is_ip
from peer.endpoint import WILDCARD_HOSTS, endpoint, format_endpoint
from peer.errors import ConfigurationError, Malformed, Unreachable
from peer.v1 import peer_pb2 as pb

HEARSAY = ("exchange", "mdns")
"""Discoveries that pass on what others say; what is written down may lead anywhere."""
DOCUMENTATION_ADDRESSES = ("192.0.2.1", "2001:db8::1")
"""Addresses of nobody (RFC 5737, 3849). Nothing is sent there; the system is asked by which address
it would be.
"""


class AddressBook:
    """What the chosen discoveries know, in the order of DISCOVERIES."""

    def __init__(
        self, discoveries: Mapping[str, Discovery], resolver: Resolver | None = None
    ) -> None:
        self.discoveries = {name: discoveries[name] for name in DISCOVERIES if name in discoveries}
        self.resolver = resolver or Resolver()
        self._labels: Mapping[str, str] = {}
        self._local = False
        """This node itself announces an address that only its machine can reach: so may the
        others.
        """
        self._sources: dict[str, Mapping[str, str]] = {}
        """id -> address -> who gave it, as last asked."""

    @classmethod
    def of(
        cls, chosen: Collection[str], context: DiscoveryContext, resolver: Resolver | None = None
    ) -> AddressBook:
        """The discoveries of these names.

        Raises:
            ConfigurationError: there is no such discovery, or it lacks a setting.
        """
        own = cls({}, resolver)
        context = replace(context, known=own.addresses, resolve=own.resolver.resolve)
        discoveries = {name: find(name).of(context) for name in chosen}
        own.discoveries = {name: discoveries[name] for name in DISCOVERIES if name in discoveries}
        own._labels = {member.id: member.name for member in context.roster.members}
        return own

    async def addresses(self, node_id: str) -> Sequence[str]:
        """IP addresses to dial, best first.

        Raises:
            Unreachable: none is known; one sentence says what each discovery lacks.
        """
        given = {
            name: await discovery.addresses(node_id) for name, discovery in self.discoveries.items()
        }
        written = {address for many in given.values() for address in many}
        looked_up = dict(
            zip(
                written,
                await asyncio.gather(*(self._look_up(each, node_id) for each in written)),
                strict=True,
            )
        )
        sources: dict[str, str] = {}
        lacking = []
        for name, many in given.items():
            for address in many:
                match looked_up[address]:
                    case Unreachable() as error:
                        lacking.append(str(error))
                    case ips:
                        for each in ips:
                            if name in HEARSAY and _is_loopback(each) and not self._local:
                                lacking.append(f"{name}: {each} would be this machine itself")
                                continue
                            sources.setdefault(
                                each, name if each == address else f"{name}: {address}"
                            )
            if not many:
                lacking.append(f"{name}: {self.discoveries[name].missing(node_id)}")
        if sources:
            self._sources[node_id] = sources
        else:
            who = self._labels.get(node_id, node_id)
            raise Unreachable(
                f"No address is known for {who} "
                f"({'; '.join(each.rstrip('.') for each in lacking)})."
            )
        return list(sources)

    async def _look_up(self, address: str, owner: str) -> Sequence[str] | Unreachable:
        """All names are looked up at once, so that one whose name server is silent costs a
        look-up's time, not more.
        """
        try:
            return await self.resolver.resolve(address, owner)
        except Unreachable as error:
            return error

    def source(self, node_id: str, address: str) -> str:
        """Which discovery gave this address, and the host name behind it; empty: unknown."""
        return self._sources.get(node_id, {}).get(address, "")

    async def announce(self, addresses: Sequence[str]) -> None:
        self._local = any(_is_loopback(each) for each in addresses)
        for discovery in self.discoveries.values():
            await discovery.announce(addresses)

    def answer(self, question: pb.Peers) -> pb.Peers:
        """The answer to a member that asks.

        Raises:
            Malformed: this node does not exchange addresses, or what it received is malformed.
        """
        for discovery in self.discoveries.values():
            if isinstance(discovery, AnswersMembers):
                return discovery.answer(question)
        raise Malformed("This node does not exchange addresses; peers.discovery lacks exchange.")

    async def run(self) -> None:
        """The discoveries' work, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, discovery in self.discoveries.items():
                group.create_task(discovery.run(), name=f"discovery {name}")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(endpoint(address)[0]).is_loopback
    except ValueError:
        return False


def own_addresses(bound: str, advertise: str) -> list[str]:
    """What a node that listens at `bound` may announce: what its owner advertises, else where it
    listens, else, where that is every address of this machine, those of its interfaces, the one
    towards the default route first.

    Raises:
        ConfigurationError: nobody else could dial any of it; the sentence says what to set.
    """
    host, port = endpoint(advertise or bound)
    if advertise and (port == 0 or host in WILDCARD_HOSTS):
        raise ConfigurationError(
            f"listen.advertise {advertise} needs the host and the port that others dial."
        )
    if not is_address(advertise or bound):
        raise ConfigurationError(
            f"{advertise or bound} can't be announced; set listen.advertise to a name in ASCII "
            "(xn--…) or an IP."
        )
    if advertise or not is_ip(host):
        return [advertise or bound]
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        raise ConfigurationError(
            f"This node listens at {bound}, where only this machine reaches it, so its address "
            f"is not announced; set listen.address to 0.0.0.0:{port}, or listen.advertise."
        )
    if not address.is_unspecified:
        return [bound]
    reachable = [format_endpoint(each, port) for each in _interfaces(v6=address.version == 6)]
    if not reachable:
        raise ConfigurationError(
            f"This node listens at {bound}, but this machine has no address that others could "
            "dial; set listen.advertise."
        )
    return reachable[:MAX_ADDRESSES]


def _interfaces(*, v6: bool) -> list[str]:
    """This machine's addresses; those of its containers' bridges come after the one towards the
    default route.
    """
    try:
        mine = [
            ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            for each in ifaddr.get_adapters()
            for ip in each.ips
        ]
    except OSError:  # a sandbox without AF_NETLINK
        return []
    sorted_out = {
        each: None
        for each in (*map(_source_address_for, DOCUMENTATION_ADDRESSES), *mine)
        if each in mine and _public(each)
    }
    return [each for each in sorted_out if v6 or ":" not in each]


def _public(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
    )


def _source_address_for(ip: str) -> str:
    """The address of this machine that a packet to `ip` would carry; empty: there is no way."""
    with socket.socket(
        socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM
    ) as probe:
        try:
            probe.connect((ip, 9))
        except OSError:
            return ""
        source: str = probe.getsockname()[0]
        return source
