"""A condition that many may wait for, on one event loop."""

from __future__ import annotations

import asyncio


class Signal:
    """Wakes everybody who waits when something changed. Check your condition, then wait, without
    awaiting between.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Returns at the next `notify`, or after so many seconds."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
