"""How often who may call: a token bucket per caller, asked before anything of a call is read.

Every call costs a token, whatever becomes of it; a transfer that was delivered gives its token
back, since a round asks for so many and no more. A caller without tokens is not refused, which it
could take for an invitation to try again: its call hangs until there is a token. So what a member
at full blast costs does not grow with its blast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

PER_SECOND = 50.0
"""Tokens; a neighbor needs one or two for its heartbeats, and some for transfers that come too
early.
"""
BURST = 100
"""Tokens of a full bucket."""
HANGING = 64
"""Calls of one caller that may be owed a token; with more its connection is cut."""
STRANGER = ""
"""All callers that are no members share one bucket."""


@dataclass(slots=True)
class Bucket:
    """Kept as the time at which it will be full again, so that nobody has to fill it."""

    full_at: float = float("-inf")

    def take(self, now: float) -> float | None:
        """Seconds until the token is there; None: too many are owed already. Times of any one
        monotonic clock.
        """
        full_at = max(self.full_at, now) + 1 / PER_SECOND
        wait = full_at - now - BURST / PER_SECOND
        if wait > HANGING / PER_SECOND:
            return None
        self.full_at = full_at
        return max(0.0, wait)

    def give_back(self) -> None:
        self.full_at -= 1 / PER_SECOND


class Admission:
    """The buckets of one listener."""

    def __init__(self, hangs: Callable[[str], None] = lambda caller: None) -> None:
        """`hangs` is called for every call that has to wait."""
        self._hangs = hangs
        self._buckets: dict[str, Bucket] = {}

    async def wait(self, caller: str) -> bool:
        """Until the caller has a token. False, at once: too many of its calls wait for theirs, or
        did and were given up."""
        seconds = self._bucket(caller).take(asyncio.get_running_loop().time())
        if seconds != 0:
            self._hangs(caller)
        if seconds:
            await asyncio.sleep(seconds)
        return seconds is not None

    def give_back(self, caller: str) -> None:
        """The call was of use."""
        self._bucket(caller).give_back()

    def _bucket(self, caller: str) -> Bucket:
        return self._buckets.setdefault(caller, Bucket())
