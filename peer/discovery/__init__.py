"""Where nodes can be dialed: the interface every discovery implements, and the table of them.

A discovery finds *addresses* for node ids of the roster. It decides nothing else: the roster says
who the members are, and whatever answers at an address proves its identity by certificate. So a
wrong address costs an attempt to connect, never more. `peer/discovery/addresses.py` puts the
discoveries of a node together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from peer.tables import load_entry

if TYPE_CHECKING:
    from peer.identity.keys import Identity
    from peer.identity.roster import Roster
    from peer.transport import Transport
    from peer.v1.peer_pb2 import Peers


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryContext:
    """What a discovery may need; each takes what it needs of it."""

    roster: Roster
    run: str = ""
    """run_id."""
    me: str = ""
    """This node's id."""
    static: Mapping[str, str] = field(default_factory=dict)
    """[peers.static]: name -> address."""
    dns: str = ""
    """[peers] dns."""
    identity: Identity | None = None
    transport: Transport | None = None
    folder: Path | None = None
    """Where what was learned is kept."""
    missing: Callable[[], Collection[str]] = tuple
    """Ids that are looked for: neighbors that are not connected."""
    known: Callable[[str], Awaitable[Sequence[str]]] | None = None
    """Addresses of an id by any discovery, with an IP each."""
    resolve: Callable[[str], Awaitable[Sequence[str]]] | None = None
    """An address with a host name -> addresses with an IP each; raises Unreachable."""
    warn: Callable[[str], None] = lambda text: None


class Discovery(Protocol):
    @classmethod
    def of(cls, context: DiscoveryContext) -> Discovery:
        """Raises ConfigurationError for settings it can't work with."""
        ...

    async def announce(self, addresses: Sequence[str]) -> None:
        """Lets others know from now on that this node is reached at these ("host:port", best
        first); may do nothing.
        """
        ...

    async def addresses(self, node_id: str) -> Sequence[str]:
        """Addresses worth dialling, best first; empty while none is known. Waits for nobody."""
        ...

    def missing(self, node_id: str) -> str:
        """Why it knows none, as half a sentence for people."""
        ...

    async def run(self) -> None:
        """Its work in the background, until cancelled, if it has any; leaves nothing behind."""
        ...


@runtime_checkable
class AnswersMembers(Protocol):
    """What a discovery has on top that members ask."""

    def answer(self, question: Peers) -> Peers:
        """The answer to a member whose identity was checked."""
        ...


DISCOVERIES: Mapping[str, str] = {
    "static": "peer.discovery.static:Static",
    "dns": "peer.discovery.dns:Dns",
    "exchange": "peer.discovery.pex:PeerExchange",
    "mdns": "peer.discovery.mdns:Mdns",
}
"""name -> module:class, in the order in which their addresses are tried: the best vouched for
first.
"""


def find(name: str) -> type[Discovery]:
    """The discovery's class.

    Raises:
        ConfigurationError: there is none of that name.
    """
    discovery: type[Discovery] = load_entry(DISCOVERIES, name, "discovery")
    return discovery
