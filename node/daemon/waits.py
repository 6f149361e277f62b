"""Whom a node waits for, and which waits are worth a line: a state machine without a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from node.observability.status import Waiting
from peer.message import Peer
from peer.session.session import Session

FIRST_S, LONG_S, MOST_S = 3.0, 60.0, 600.0
"""A wait is noted when it has lasted FIRST_S, again whenever that has doubled, then every MOST_S.
In a round the first is LONG_S for a neighbor that makes progress: slow is not dead.
"""
CHANGED_S = 10.0
"""Sooner than that a wait is not noted again, be it for another reason."""


class Waits:
    """Of one node; `deadline` is `sync.deadline_s`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._noted: dict[Peer, tuple[float, str]] = {}
        """How long a wait had lasted when it was noted last, and the reason then."""

    def due(self, waiting: Iterable[Waiting], *, gathering: bool) -> Iterator[Waiting]:
        """Those to be noted now. `gathering`: before the first round."""
        for each in waiting:
            peer, lasted, reason = each["peer"], each["since_s"], each["why"]
            noted = self._noted.get(peer)
            if noted is not None and noted[0] > lasted:  # of an earlier wait
                noted = None
            if noted is None:
                urgent = gathering or each["until_s"] < self.deadline / 2
                is_due = lasted >= (FIRST_S if urgent else LONG_S)
            else:
                same = reason == noted[1]
                pause = max(CHANGED_S, min(noted[0], MOST_S)) if same else CHANGED_S
                is_due = lasted >= noted[0] + pause
            if is_due:
                self._noted[peer] = lasted, reason
                yield each

    def ended(self, peer: Peer) -> bool:
        """The neighbor is waited for no more; was that wait noted?"""
        return self._noted.pop(peer, None) is not None


def waiting(session: Session, trouble: Callable[[Peer], str | None]) -> list[Waiting]:
    """Whom the node waits for now. `trouble`: what keeps a neighbor away, while all gather."""
    now, at = session.table.now, session.progress
    began, end = at.gathering
    gathering, states = at.round < 0, session.table.states
    what = "its handshake" if gathering else f"its part of {at.kind!r}"
    return [
        Waiting(
            peer=peer,
            since_s=max(0.0, now - (began if gathering else at.since)),
            until_s=(end if gathering else session.table.membership.until(peer)) - now,
            why=(trouble(peer) if gathering else states[peer].unreached) or f"{what} has not come.",
        )
        for peer in sorted(at.waiting_for)
    ]
