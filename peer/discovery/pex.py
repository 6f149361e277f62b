"""Peer exchange: members of the roster tell each other where members can be dialed.

One address of one member is enough to begin with. Every member announces its own address, signed
with its key, and passes on what others announced; the newest announcement of a member counts. Asked
and told is only among members of the roster, neighbors or not, over the same mutual TLS as
everything (`Session.call` checks who speaks). What was learned is kept in a file, the book, and
outlives the process.

Nobody can announce for somebody else, nor bring back for long what a member has replaced. A member
can lie about its own address, which makes others open a TLS connection to a place of its choosing,
to no effect: what answers there has to show the certificate of the id that was dialed. A node whose
clock was wrong, so that its new announcements look older than those before, hears its own old one
from others and announces later than that.

Not covered: a member sees the addresses of all members, and so does somebody to whom a careless CA
gave a member's name (TLS checks that; the key behind it is checked before anything else is sent).
No address is ever proved to be of use.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from peer import codec, files
from peer.discovery import DiscoveryContext
from peer.errors import Malformed, RemoteError, StorageError, Unreachable
from peer.identity.keys import announced
from peer.v1 import peer_pb2 as pb

FILE = "peers.json"
"""The book, in the node's folder."""
FORMAT = "peerpoise peer book 1"
MAX_BYTES = 16 << 20
"""Largest book that is read: some ten thousand members."""
FANOUT = 2
"""Neighbors, and other members, asked per turn."""
TURN_FIRST, TURN_MOST = 0.5, 8.0
"""Seconds between turns while a neighbor is looked for or nobody ever answered, growing from the
first to the most.
"""
CALM = 60.0
"""Seconds between turns otherwise."""
CALL_SECONDS, TURN_SECONDS = 3.0, 6.0
"""One question, and all of a turn: members that are gone hold up nobody for long."""
BURST, PER_SECOND = 8, 2.0
"""Questions of one member that are answered at once, and later ones: 64 signatures each take 5 ms
to check.
"""


class PeerExchange:
    """One node's side of it, and its book."""

    def __init__(self, context: DiscoveryContext) -> None:
        self.context, self.me = context, context.me
        self._path = context.folder / FILE if context.folder else None
        self.members = set(context.roster.ids)
        self.book: dict[str, pb.Announcement] = {}
        """id -> its newest announcement; this node's own too."""
        self._own: tuple[str, ...] = ()
        self._changed = False
        self._asked: dict[str, tuple[float, float]] = {}
        """id -> (questions it may ask at once, when that was so)."""
        self._heard = False
        """Some member answered, so that others can know of this node."""

    @classmethod
    def of(cls, context: DiscoveryContext) -> PeerExchange:
        return cls(context)

    async def announce(self, addresses: Sequence[str]) -> None:
        self._own = tuple(addresses)
        self._issue()

    async def addresses(self, node_id: str) -> Sequence[str]:
        announcement = self.book.get(node_id)
        return (
            tuple(announcement.addresses) if announcement is not None and node_id != self.me else ()
        )

    def missing(self, node_id: str) -> str:
        return "no member that was asked knows one"

    def _issue(self, after: int = 0) -> None:
        """Signs this node's addresses again, later than `after`. Without an identity nothing can be
        announced.
        """
        identity = self.context.identity
        if identity is None or not self._own:
            return
        issued = max(after + 1, time.time_ns() // 1_000_000)
        self.book[self.me] = pb.Announcement(
            member=self.me,
            issued=issued,
            addresses=self._own,
            spki=identity.spki,
            signature=identity.sign_announcement(issued, self._own),
        )

    # what others say

    def take(self, announcements: Iterable[pb.Announcement]) -> None:
        """Keeps what is newer than what is known, of members of the roster.

        Raises:
            Malformed: an announcement that its member did not sign; what came after it is not
                looked at.
        """
        for announcement in announcements:
            if self._newer(announcement):
                if not _signed(announcement):
                    raise Malformed(
                        "An announcement is not signed by the node it is about.", pb.CODE_IDENTITY
                    )
                self._keep(announcement)

    def _newer(self, announcement: pb.Announcement) -> bool:
        held = self.book.get(announcement.member)
        return announcement.member in self.members and (
            held is None or announcement.issued > held.issued
        )

    def _keep(self, announcement: pb.Announcement) -> None:
        if announcement.member == self.me:
            self._issue(after=announcement.issued)
        else:
            self.book[announcement.member] = pb.Announcement.FromString(
                announcement.SerializeToString()
            )
            self._changed = True

    def answer(self, question: pb.Peers) -> pb.Peers:
        """The answer to a member, whose identity was checked.

        Raises:
            Malformed: it asks too often, or tells what its member did not sign.
        """
        if not self._may_ask(question.sender, asyncio.get_running_loop().time()):
            raise Malformed("Addresses are asked for too often.", pb.CODE_BUSY)
        self.take(question.known)
        return self._tell(question.wanted)

    def _may_ask(self, member: str, now: float) -> bool:
        left, at = self._asked.get(member, (float(BURST), now))
        left = min(float(BURST), left + PER_SECOND * (now - at))
        self._asked[member] = (max(0.0, left - 1), now)
        return left >= 1

    def _tell(self, wanted: Iterable[str]) -> pb.Peers:
        """This node's own announcement, those that are wanted, and others by chance."""
        first = [self.me, *(node_id for node_id in wanted if node_id != self.me)]
        chosen = {node_id: self.book[node_id] for node_id in first if node_id in self.book}
        others = [node_id for node_id in self.book if node_id not in chosen]
        random.shuffle(others)
        known = [*chosen.values(), *(self.book[node_id] for node_id in others)][
            : codec.MAX_ANNOUNCEMENTS
        ]
        return pb.Peers(run=self.context.run, sender=self.me, known=known)

    # what is asked

    async def run(self) -> None:
        for announcement in await asyncio.to_thread(self._load):
            if self._newer(announcement) and announcement.member != self.me:
                self.book[announcement.member] = announcement
        pause = TURN_FIRST
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TURN_SECONDS):
                        await self._turn()
                await self._save()
                pause = min(TURN_MOST, pause * 1.5) if self._restless() else TURN_FIRST
                await self._rest(pause)
        finally:
            await self._save()

    def _restless(self) -> bool:
        return bool(self.context.missing()) or not self._heard

    async def _rest(self, pause: float) -> None:
        """Until the next turn is due: soon when a neighbor is looked for."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while clock() - began < (pause if self._restless() else CALM):  # noqa: ASYNC110
            await asyncio.sleep(min(pause, 1.0) * random.uniform(0.5, 1.0))

    async def _turn(self) -> None:
        """Asks a few neighbors and a few others, chosen by chance among those that can be
        dialed.
        """
        missing = [node_id for node_id in self.context.missing() if node_id in self.members]
        near = set(missing)
        async with asyncio.TaskGroup() as group:
            for candidates in (near, self.members - near):
                group.create_task(self._ask_some(candidates - {self.me}, missing, group))

    async def _ask_some(
        self, candidates: Collection[str], wanted: Sequence[str], group: asyncio.TaskGroup
    ) -> None:
        """A look-up may take most of a turn: neighbors whose names nobody answers for do not keep
        others waiting.
        """
        asked = 0
        for node_id in random.sample(sorted(candidates), len(candidates)):
            if asked < FANOUT and (addresses := await self._known(node_id)):
                group.create_task(self._ask(node_id, addresses, wanted))
                asked += 1

    async def _known(self, node_id: str) -> Sequence[str]:
        assert self.context.known is not None
        try:
            return await self.context.known(node_id)
        except Unreachable:
            return ()

    async def _ask(self, node_id: str, addresses: Sequence[str], wanted: Sequence[str]) -> None:
        """Asks one member, at the first of its addresses where it answers."""
        assert self.context.transport is not None
        question = self._tell(())
        question.wanted.extend(random.sample(wanted, min(len(wanted), codec.MAX_ANNOUNCEMENTS)))
        request = codec.encode(question)
        for address in addresses:
            link = self.context.transport.link(node_id, address)
            try:
                reply = codec.decode(pb.Peers, await link.call("Peers", request, CALL_SECONDS))
                if reply.sender == node_id:
                    self._heard = True
                    self.take(reply.known)
                return
            except RemoteError:
                continue
            finally:
                await link.close()

    # the book

    def _load(self) -> list[pb.Announcement]:
        """What the book holds; a damaged one holds nothing. It is checked as if a member told
        it.
        """
        path = self._path
        if path is None or not path.exists():
            return []
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, DecodeError, Malformed):
            self.context.warn(f"{path} is damaged and not used; addresses are learned again.")
            return []

    async def _save(self) -> None:
        if self._path is None or not self._changed:
            return
        self._changed = False
        many = [base64.b64encode(each.SerializeToString()).decode() for each in self.book.values()]
        document = json.dumps({"format": FORMAT, "announcements": many}, indent=1)
        try:
            await asyncio.to_thread(files.atomic_write, self._path, document.encode())
        except StorageError as error:
            self.context.warn(str(error))


def _read(path: Path) -> list[pb.Announcement]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError
    document = json.loads(path.read_bytes())
    if document["format"] != FORMAT:
        raise ValueError
    many = [
        codec.decode(pb.Announcement, base64.b64decode(text, validate=True))
        for text in document["announcements"]
    ]
    if not all(map(_signed, many)):
        raise ValueError
    return many


def _signed(announcement: pb.Announcement) -> bool:
    return announced(
        announcement.spki,
        announcement.signature,
        member=announcement.member,
        issued=announcement.issued,
        addresses=announcement.addresses,
    )
