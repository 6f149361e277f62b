"""Addresses written down beforehand: the roster's, and node.toml's over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peer.discovery import DiscoveryContext
from peer.endpoint import endpoint
from peer.errors import ConfigurationError


class Static:
    """Answers from a table node id -> addresses ("host:port", best first)."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        for address in (one for many in addresses.values() for one in many):
            endpoint(address)
        self._addresses = {node_id: tuple(many) for node_id, many in addresses.items()}

    @classmethod
    def of(cls, context: DiscoveryContext) -> Static:
        """The roster's addresses; [peers.static] (name -> address) come before them.

        Raises:
            ConfigurationError: an address for a name that the roster lacks, or something that is no
                address.
        """
        roster = context.roster
        for name in context.static:
            if name not in roster.by_name:
                raise ConfigurationError(
                    f"peers.static names {name!r}, which is not in the roster."
                )
        table = {member.id: member.addresses for member in roster.members}
        for name, address in context.static.items():
            member = roster.by_name[name]
            table[member.id] = (address, *(one for one in member.addresses if one != address))
        return cls(table)

    async def announce(self, addresses: Sequence[str]) -> None:
        """Nothing: the others have it written down."""

    async def addresses(self, node_id: str) -> Sequence[str]:
        return self._addresses.get(node_id, ())

    def missing(self, node_id: str) -> str:
        return "neither roster nor peers.static has one"

    async def run(self) -> None:
        """Nothing is to be done."""
