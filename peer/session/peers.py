"""A node's circle: who it is, who its neighbors are, what was agreed with each, and where everybody
stands.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from peer import codec
from peer.errors import Malformed
from peer.membership import Membership
from peer.message import Peer
from peer.session.interfaces import SessionObserver, Signal
from peer.transport import Link
from peer.v1 import peer_pb2 as pb

LONGEST = 300
"""Characters of what a model is fed, in a refusal."""
REPLAY_WINDOW = 4096
"""Sequence numbers per neighbor that are remembered; older ones are refused unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParameters:
    """What both ends must have in common; compared in the handshake."""

    run: str
    roster: int
    """Version. Two may differ in it: what a version can change, no weight depends on."""
    layout: bytes
    members: bytes = b""
    """Digest of the roster's members, removed ones included."""
    validation: bytes = b""
    start: bytes = b""
    """Digest of the initial parameters."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the model is fed, in words that tell nothing of the examples."""

    @property
    def inputs_digest(self) -> bytes:
        """SHA-256, empty where nothing is said."""
        return (
            hashlib.sha256(json.dumps(dict(self.inputs), sort_keys=True).encode()).digest()
            if self.inputs
            else b""
        )

    def difference(self, hello: pb.Hello) -> tuple[int, str]:
        """(code, sentence) of the first thing in which the caller differs; (CODE_OK, "") if nothing
        does.
        """
        for same, code, here, there in (
            (hello.run == self.run, pb.CODE_RUN, self.run, hello.run),
            (
                self._same_members(hello),
                pb.CODE_ROSTER,
                f"version {self.roster}",
                f"version {hello.roster}",
            ),
            (
                hello.layout == self.layout,
                pb.CODE_LAYOUT,
                self.layout.hex()[:12],
                hello.layout.hex()[:12],
            ),
            (hello.validation == self.validation, pb.CODE_VALIDATION, "one digest", "another"),
            (hello.inputs == self.inputs_digest, pb.CODE_INPUTS, self._fed, "something else"),
            (
                hello.start == self.start,
                pb.CODE_START,
                self.start.hex()[:12],
                hello.start.hex()[:12],
            ),
        ):
            if not same:
                return code, codec.printable(
                    f"{codec.sentence(code)} (Here: {here}; at the caller: {there}.)"
                )
        return pb.CODE_OK, ""

    def _same_members(self, hello: pb.Hello) -> bool:
        """Peers of earlier releases say their version only."""
        return hello.members == self.members if hello.members else hello.roster == self.roster

    @property
    def _fed(self) -> str:
        text = (
            ", ".join(f"{name} {value}" for name, value in self.inputs.items()) or "nothing is said"
        )
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


LASTING = frozenset(
    (
        pb.CODE_PROTOCOL,
        pb.CODE_RUN,
        pb.CODE_ROSTER,
        pb.CODE_LAYOUT,
        pb.CODE_VALIDATION,
        pb.CODE_INPUTS,
        pb.CODE_START,
    )
)
"""Refusals that time does not mend."""


@dataclass(slots=True, kw_only=True)
class LocalProgress:
    """Where this node stands; the driver writes it, beats carry it."""

    round: int = -1
    phase: int = 0
    first: int = 0
    """The first round this node will enter."""
    kind: str = ""
    """What the present phase exchanges, for people."""
    since: float = 0.0
    """When the present phase began."""
    waiting_for: frozenset[Peer] = frozenset()
    working: Callable[[], bool] = lambda: False
    work_done: Callable[[], int] = lambda: 0

    @property
    def earliest(self) -> int:
        """The first round from which an edge can be used: the next but one while inside a round."""
        return self.round + 2 if self.round >= 0 else self.first


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
    """How many of the statements noted here it was told."""
    contradicted: bool = False
    """It told different neighbors different things."""
    nonce: bytes = b""
    welcome: pb.Welcome = field(default_factory=pb.Welcome)
    """The neighbor's last handshake and the answer to it."""
    _seen: set[int] = field(default_factory=set)
    _newest: int = 0

    def renew(self, incarnation: int) -> None:
        """A handshake with another process of it: its sequence numbers start anew."""
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
    """Shared by the session (handshakes, beats) and its transfers."""

    me: Peer
    ids: Mapping[Peer, str]
    """Node ids of the whole roster, by name."""
    parameters: RunParameters
    incarnation: int
    membership: Membership
    observer: SessionObserver = field(default_factory=SessionObserver)
    progress: LocalProgress = field(default_factory=LocalProgress)
    changed: Signal = field(default_factory=Signal)
    """Something happened that a waiting driver may wait for."""
    stopping: bool = False
    moved: int = 0
    """Frames sent and received."""
    states: dict[Peer, PeerState] = field(init=False)
    names: dict[str, Peer] = field(init=False)

    def __post_init__(self) -> None:
        self.states = {
            peer: PeerState(self.ids[peer]) for peer in sorted(self.membership.neighbors)
        }
        self.names = {node_id: name for name, node_id in self.ids.items()}

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

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
