"""How often who may call: a token bucket per caller, asked before anything of a call is read.

Every call costs a token, whatever becomes of it; a transfer that was delivered gives its token back, since a round asks
for so many and no more. Who has none left is not refused, which it could take for an invitation to try again: its call
hangs until there is a token. So what a member at full blast costs does not grow with its blast.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

PER_SECOND = 50.0
"""Tokens; a neighbor needs one or two for its heartbeats, and some for transfers that come too early."""
BURST = 100
"""Tokens of a full bucket."""
HANGING = 64
"""Calls of one caller that wait for their tokens; what comes on top is refused, after REFUSED_AFTER."""
REFUSED_AFTER = 10.0
"""Seconds."""
STRANGER = ""
"""All callers that are no members share one bucket."""


@dataclass(slots=True)
class Bucket:
    """Kept as the time at which it will be full again, so that nobody has to fill it."""

    full_at: float = float("-inf")

    def take(self, now: float) -> float:
        """Seconds until the token is there. Times in seconds of any one monotonic clock."""
        most = now + (BURST + HANGING) / PER_SECOND  # calls that were given up must not add up to a debt
        self.full_at = min(most, max(self.full_at, now) + 1 / PER_SECOND)
        return max(0.0, self.full_at - now - BURST / PER_SECOND)

    def give_back(self) -> None:
        self.full_at -= 1 / PER_SECOND


class Admission:
    """The buckets of one listener."""

    def __init__(self, hangs: Callable[[str], None] = lambda caller: None) -> None:
        """`hangs` is told of every call that has to wait."""
        self._hangs = hangs
        self._buckets: dict[str, Bucket] = {}
        self._hanging: Counter[str] = Counter()

    async def wait(self, caller: str) -> bool:
        """Until the caller has a token. False: too many of its calls wait already; this one has hung for nothing."""
        if self._hanging[caller] >= HANGING:
            self._hangs(caller)
            await asyncio.sleep(REFUSED_AFTER)
            return False
        seconds = self._bucket(caller).take(asyncio.get_running_loop().time())
        if seconds > 0:
            self._hangs(caller)
            self._hanging[caller] += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._hanging[caller] -= 1
        return True

    def give_back(self, caller: str) -> None:
        """The call was of use."""
        self._bucket(caller).give_back()

    def _bucket(self, caller: str) -> Bucket:
        return self._buckets.setdefault(caller, Bucket())
