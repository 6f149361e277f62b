"""Who this node is and where it stands, who its neighbors are, and what was agreed with each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from peer import codec
from peer.errors import Malformed
from peer.membership import Membership
from peer.message import Peer
from peer.session.interfaces import OpenPhase, SessionObserver, Work
from peer.session.mailbox import Mailbox
from peer.session.signal import Signal
from peer.transport import Link
from peer.v1 import peer_pb2 as pb

LONGEST = 300
"""Characters of what a model is fed, in a refusal."""
REPLAY_WINDOW = 4096
"""Sequence numbers per neighbor that are remembered; older ones are refused unseen."""


DIFFERENCES: Mapping[str, pb.Code] = {
    "roster": pb.CODE_ROSTER,
    "layout": pb.CODE_LAYOUT,
    "validation": pb.CODE_VALIDATION,
    "inputs": pb.CODE_INPUTS,
    "start": pb.CODE_START,
}
"""Names of digests for which the wire has a sentence of their own; it has one for all others."""
LASTING = frozenset({pb.CODE_PROTOCOL, pb.CODE_RUN, pb.CODE_DIFFERENT} | {*DIFFERENCES.values()})
"""Refusals that time does not cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParameters:
    """What both ends must have in common; compared in the handshake."""

    run: str
    roster: int
    """Version. Two nodes may differ in it: no weight depends on what a version can change."""
    digests: Mapping[str, bytes] = field(default_factory=dict)
    """What must be equal -> its SHA-256, in the order in which it is compared."""
    words: Mapping[str, str] = field(default_factory=dict)
    """The same -> what it is here, for people, where words say more than a digest."""
    own_code: bytes = b""
    """SHA-256 of the code of its owner's that this node runs. Two nodes may differ in it; both say
    so.
    """

    def difference(self, hello: pb.Hello, me: Peer, caller: Peer) -> tuple[pb.Code, str]:
        """(code, sentence) of the first thing in which the caller differs; (CODE_OK, "") if nothing
        does. The sentence names both ends.
        """

        def differs(code: pb.Code, here: str, there: str) -> tuple[pb.Code, str]:
            ends = f"({me}: {here}; {caller}: {there}.)"
            return code, codec.printable(f"{codec.sentence(code)} {ends}")

        if hello.run != self.run:
            return differs(pb.CODE_RUN, self.run, hello.run)
        for name in [*self.digests, *sorted(hello.digests)]:
            here, there = self.digests.get(name, b""), hello.digests.get(name, b"")
            if here == there:
                continue
            code = DIFFERENCES.get(name, pb.CODE_DIFFERENT)
            if code == pb.CODE_ROSTER:  # its version says which side has to be brought up to date
                return differs(code, f"version {self.roster}", f"version {hello.roster}")
            if name in self.words:
                return differs(code, _shortened(self.words[name]), "something else")
            return differs(code, _abbreviated(name, here), _abbreviated(name, there))
        return pb.CODE_OK, ""


def _abbreviated(name: str, digest: bytes) -> str:
    return f"{name} {digest.hex()[:12]}" if digest else f"no {name}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


class LocalProgress:
    """Where this node stands, as heartbeats and status tell it: derived from the phase that is
    open.
    """

    def __init__(self, mailbox: Mailbox, work: Work) -> None:
        self.mailbox, self.work = mailbox, work
        self.running = False
        """Inside a round."""
        self.first = 0
        """The first round this node will enter."""
        self.waiting_for: frozenset[Peer] = frozenset()
        self.gathering = (0.0, 0.0)
        """When it began to wait for its neighbors before its first round, and until when it does,
        in seconds of the event loop's clock.
        """

    @property
    def round(self) -> int:
        """The round this node is inside, -1 outside."""
        return self.mailbox.round if self.running else -1

    @property
    def phase(self) -> int:
        """Number of the verb within the round."""
        return self._current.key.phase if self._current else 0

    @property
    def kind(self) -> str:
        """What the present phase exchanges, for people; empty if there is none."""
        return self._current.shape.kind if self._current else ""

    @property
    def since(self) -> float:
        """When the present phase began, in seconds of the event loop's clock."""
        return self._current.opened if self._current else 0.0

    @property
    def earliest(self) -> int:
        """The first round from which an edge can be used: the next but one while inside a round."""
        return self.round + 2 if self.running else self.first

    @property
    def _current(self) -> OpenPhase | None:
        return self.mailbox.current if self.running else None


@dataclass(slots=True)
class PeerState:
    """What the session knows of one neighbor beyond its membership."""

    id: str
    link: Link | None = None
    address: str = ""
    """Dialled at present, or last."""
    tried: set[str] = field(default_factory=set)
    """Addresses that failed since one worked, or since all were tried."""
    proven: bool = False
    """It showed that it holds the key of its id, over the present link."""
    unreached: str = ""
    """Why this node can't dial it, in a sentence; empty: it can, or has not tried."""
    incarnation: int = 0
    """Of the process with which the edge was agreed on."""
    sent: int = 0
    """Sequence number of the last transfer to it."""
    wake: Signal = field(default_factory=Signal)
    asked: tuple[int, int] = (0, 0)
    """(incarnation, order) of the last handshake that it began and this node agreed to."""
    spki: bytes = b""
    """The public key (DER) that it showed when it proved its id."""
    passed_on: int = 0
    """How many of the statements noted here were sent to it."""
    contradicted: bool = False
    """It told different neighbors different things."""
    nonce: bytes = b""
    welcome: pb.Welcome = field(default_factory=pb.Welcome)
    """The neighbor's last handshake and the answer to it."""
    _seen: set[int] = field(default_factory=set)
    _newest: int = 0

    def renew(self, incarnation: int) -> None:
        """A handshake with another process of it: its sequence numbers start again."""
        if incarnation != self.incarnation:
            self.incarnation, self._seen, self._newest = incarnation, set(), 0

    def replayed(self, sequence: int) -> bool:
        """Was this number used before? (Numbers come in any order, each once.)"""
        if sequence in self._seen or sequence <= self._newest - REPLAY_WINDOW:
            return True
        self._seen.add(sequence)
        self._newest = max(self._newest, sequence)
        if len(self._seen) > 2 * REPLAY_WINDOW:
            self._seen = {number for number in self._seen if number > self._newest - REPLAY_WINDOW}
        return False


@dataclass(slots=True, kw_only=True)
class PeerTable:
    """Shared by the session (handshakes, heartbeats), its transfers and the driver."""

    me: Peer
    ids: Mapping[Peer, str]
    """Node ids of the whole roster, by name."""
    parameters: RunParameters
    incarnation: int
    membership: Membership
    observer: SessionObserver = field(default_factory=SessionObserver)
    changed: Signal = field(default_factory=Signal)
    """Something happened that a waiting driver may wait for."""
    stopping: bool = False
    moved: int = 0
    """Frames sent and received."""
    states: dict[Peer, PeerState] = field(init=False)
    names: dict[str, Peer] = field(init=False)
    _order: int = 0

    def __post_init__(self) -> None:
        self.states = {
            peer: PeerState(self.ids[peer]) for peer in sorted(self.membership.neighbors)
        }
        self.names = {node_id: name for name, node_id in self.ids.items()}

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def next_order(self) -> int:
        """The number of a Hello, Welcome or Beat that is made now: they may overtake each other."""
        self._order += 1
        return self._order

    def address(self, message: pb.Hello | pb.Header, to: Peer) -> None:
        """Fills in who speaks to whom, and in which run."""
        message.protocol = codec.PROTOCOL
        message.run = self.parameters.run
        message.sender, message.receiver = self.ids[self.me], self.ids[to]
        message.incarnation = self.incarnation

    def refusal(self, message: pb.Hello | pb.Header) -> pb.Code:
        """Why nothing of this message counts here: the wire, the run or the receiver is another, or
        this node stops. CODE_OK if nothing speaks against it."""
        if self.stopping:
            return pb.CODE_STOPPING
        if message.protocol != codec.PROTOCOL:
            return pb.CODE_PROTOCOL
        if message.run != self.parameters.run:
            return pb.CODE_RUN
        return pb.CODE_OK if message.receiver == self.ids[self.me] else pb.CODE_IDENTITY

    def note_trouble(self, peer: Peer, why: str, code: int) -> None:
        """What keeps the neighbor away, for people."""
        neighbor = self.membership.neighbors[peer]
        neighbor.last_error = why
        if code in LASTING:
            neighbor.refusal = why

    def note_reached(self, peer: Peer) -> None:
        """The neighbor answers: what kept this node from reaching it is over."""
        state, neighbor = self.states[peer], self.membership.neighbors[peer]
        if state.unreached and neighbor.last_error == state.unreached:
            neighbor.last_error = ""
        state.unreached = ""

    def note_unreached(self, peer: Peer, why: str) -> None:
        """The neighbor says why it can't dial this node; empty: it can."""
        neighbor, what = self.membership.neighbors[peer], f"{peer} can't reach this node"
        if why or neighbor.last_error.startswith(what):
            neighbor.last_error = f"{what}: {why}" if why else ""

    def lose(self, peer: Peer, why: str, *, idle: bool = False) -> None:
        """Drops the edge until a new handshake."""
        self.membership.lose(peer, why, idle=idle)
        self.observer.presence(peer, False)
        self.states[peer].wake.notify()
        self.changed.notify()

    def cut(self, peer: Peer, why: str) -> None:
        """Drops the edge for as long as this process lives."""
        self.membership.bar(peer, inf)
        self.lose(peer, why)

    def peer(self, caller: str | None, sender: str) -> Peer:
        """The neighbor that speaks. `caller` is what the transport proved, if it proves anything.

        Raises:
            Malformed: it claims another id than its certificate's, or is no neighbor.
        """
        _check_identity(caller, sender)
        name = self.names.get(sender)
        if name is None or name not in self.states:
            raise Malformed(codec.sentence(pb.CODE_NOT_A_NEIGHBOR), pb.CODE_NOT_A_NEIGHBOR)
        return name

    def member(self, caller: str | None, sender: str) -> Peer:
        """The member of the roster that speaks, neighbor or not: enough to ask for addresses, for
        nothing else.

        Raises:
            Malformed: it claims another id than its certificate's, or is not in the roster.
        """
        _check_identity(caller, sender)
        if sender not in self.names:
            raise Malformed(codec.sentence(pb.CODE_NOT_A_MEMBER), pb.CODE_NOT_A_MEMBER)
        return self.names[sender]

    def known(self, ids: Iterable[str]) -> frozenset[Peer]:
        """The names of those ids that are in the roster."""
        return frozenset(self.names[node_id] for node_id in ids if node_id in self.names)


def _check_identity(caller: str | None, sender: str) -> None:
    if caller is not None and caller != sender:
        raise Malformed(codec.sentence(pb.CODE_IDENTITY), pb.CODE_IDENTITY)
