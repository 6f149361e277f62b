"""Addresses by a naming scheme: one DNS name per node, or one for all of them.

"{name}.peers.example:7443" is a name per node. "peers.example:7443" is one whose records are all
nodes' (a headless service): each is dialed in turn until the certificate is the one that is looked
for. Names are resolved again at every attempt (`peer/discovery/resolver.py`), so a name may exist
later than a node, and change.

Not covered: whoever can answer DNS can send a node to any address, which then fails for want of the
key.
"""

from __future__ import annotations

from collections.abc import Sequence

from peer.discovery import DiscoveryContext
from peer.endpoint import endpoint
from peer.errors import ConfigurationError
from peer.identity.roster import Roster


class Dns:
    """Writes each member's name into the scheme."""

    def __init__(self, scheme: str, roster: Roster) -> None:
        """Raises ConfigurationError: `scheme` gives no host:port."""
        self._scheme = scheme
        self._addresses = {
            member.id: scheme.replace("{name}", member.name) for member in roster.members
        }
        for address in self._addresses.values():
            if not 0 < endpoint(address)[1]:
                raise ConfigurationError(
                    f"peers.dns {scheme!r} needs the port at which nodes listen."
                )

    @classmethod
    def of(cls, context: DiscoveryContext) -> Dns:
        if not context.dns:
            raise ConfigurationError(
                'peers.discovery has "dns": set peers.dns, such as "{name}.peers.example:7443".'
            )
        return cls(context.dns, context.roster)

    async def announce(self, addresses: Sequence[str]) -> None:
        """Nothing: whoever runs the name server knows."""

    async def addresses(self, node_id: str) -> Sequence[str]:
        address = self._addresses.get(node_id)
        return (address,) if address else ()

    def missing(self, node_id: str) -> str:
        return f"peers.dns {self._scheme!r} gives none"

    async def run(self) -> None:
        """Nothing is to be done."""
