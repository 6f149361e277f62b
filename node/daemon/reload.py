"""Roster and certificate of a running daemon, read again when their files change.

A higher version of the roster may remove members: they are cut at once, and the run goes on without
them. Whatever else it would change needs a new run, so it is refused in a warning. A new
certificate of the same key takes the place of the old one; nothing that is under way notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

from node.config import NodeConfig
from peer import files
from peer.errors import IdentityError, PeerpoiseError
from peer.identity.keys import Identity
from peer.identity.roster import Roster
from peer.session.signal import Signal

EVERY = 2.0
"""Seconds between two looks at the files."""
AHEAD = timedelta(days=30)
"""A certificate that expires within this time is a warning."""

Stamps: TypeAlias = dict[Path, tuple[int, int, int]]
"""file -> what shows that it was replaced."""
T = TypeVar("T")


def _tried(read: Callable[[], T]) -> T | PeerpoiseError:
    try:
        return read()
    except PeerpoiseError as error:
        return error


def keep_version(folder: Path, roster: Roster) -> None:
    """Notes in the state folder which version is in force, for the next start.

    Raises:
        IdentityError: a higher one was: this one would take removed members back.
        StorageError: the disk refuses.
    """
    path = folder / "roster.version"
    try:
        known = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = -1
    if roster.version < known:
        raise IdentityError(
            f"The roster is of version {roster.version}, and {known} was in force here; copy "
            "that one."
        )
    if roster.version > known:
        files.atomic_write(path, str(roster.version).encode())


class Reload:
    """`run` watches; `now` makes it look at once."""

    def __init__(
        self,
        node: NodeConfig,
        federation: str,
        roster: Roster,
        identity: Identity,
        *,
        adopt: Callable[[Roster, frozenset[str]], None],
        rotate: Callable[[Identity], None],
        warn: Callable[[str], None],
    ) -> None:
        """`adopt` gets a newer roster and the names it removes, `rotate` a newer certificate of
        this node.
        """
        self.node, self.federation, self.roster, self.identity = node, federation, roster, identity
        self.adopt, self.rotate, self.warn = adopt, rotate, warn
        self._due = Signal()
        self._seen: Stamps = {}
        """Nothing yet: the files may have changed since the daemon read them, which is seconds or
        minutes ago.
        """

    def now(self) -> None:
        """Reads both, changed or not."""
        self._seen = {}
        self._due.notify()

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            IdentityError: a newer roster removes this node itself.
        """
        while True:
            self._warn_of_expiry()
            await self._due.wait(EVERY)
            stamps, roster, identity = await asyncio.to_thread(self._look, self._seen)
            if roster is not None and identity is not None:
                self._seen = stamps
                self._take_roster(roster)
                self._take_identity(identity)

    def _look(
        self, seen: Stamps
    ) -> tuple[Stamps, Roster | PeerpoiseError | None, Identity | PeerpoiseError | None]:
        """What the files' stamps are; where they changed, what is in them, or why that can't be
        used. In a thread.
        """
        stamps, own = self._stamps(), self.node.identity
        if stamps == seen:
            return stamps, None, None
        roster = _tried(lambda: Roster.load(self.node.roster, self.federation))
        return stamps, roster, _tried(lambda: Identity.load(*own.files))

    def _stamps(self) -> Stamps:
        """What shows that a file was replaced; a file that is not there just now has none."""
        own = self.node.identity
        stamps: Stamps = {}
        for path in (self.node.roster, *own.files):
            try:
                about = path.stat()
            except OSError:
                continue
            stamps[path] = (about.st_mtime_ns, about.st_size, about.st_ino)
        return stamps

    def _take_roster(self, newer: Roster | PeerpoiseError) -> None:
        try:
            if isinstance(newer, PeerpoiseError):
                raise newer
            if newer == self.roster:
                return
            removed = self.roster.gone(newer)
        except PeerpoiseError as error:
            self.warn(
                f"The roster {self.node.roster} is not used ({str(error).rstrip('.')}); the one "
                "before stays."
            )
            return
        self.roster = newer
        if self.node.name in removed:
            raise IdentityError(
                f"{self.node.name} was removed from the roster (version {newer.version})."
            )
        self.adopt(newer, removed)

    def _take_identity(self, newer: Identity | PeerpoiseError) -> None:
        try:
            if isinstance(newer, PeerpoiseError):
                raise newer
            if (newer.certificate_pem, newer.ca_pem) == (
                self.identity.certificate_pem,
                self.identity.ca_pem,
            ):
                return
            self.rotate(newer)
        except PeerpoiseError as error:
            self.warn(f"The new certificate is not used; the one before stays. {error}")
            return
        self.identity = newer

    def _warn_of_expiry(self) -> None:
        expires, path = self.identity.expires, self.node.identity.certificate
        left = expires - datetime.now(UTC)
        if left < AHEAD:
            self.warn(
                f"This node's certificate ({path}) or its CA's expires in {left.days} days, on "
                f"{expires:%Y-%m-%d}: put a new one (peerpoise ca renew) in its "
                "place; it is read without a restart."
            )
