"""What a driver has under way beside the verb it is in: transfers to each neighbor, and payloads
that are still being filled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType

from peer.message import Peer
from peer.session.interfaces import Key, Role


class RoundTasks:
    """A task group for all rounds of a run; `async with` it. When one task fails, so does the
    run.
    """

    def __init__(self, *, skip_busy: bool) -> None:
        """`skip_busy`: a neighbor that is still being sent the previous message of a phase is left
        out (async)."""
        self._skip_busy = skip_busy
        self._group = asyncio.TaskGroup()
        self._running = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: dict[tuple[int, Role, Peer], asyncio.Task[None]] = {}

    async def __aenter__(self) -> RoundTasks:
        await self._group.__aenter__()
        self._running = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is sent any more when the last round is over."""
        self._running = False
        self.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Runs something until it is over or the round is."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def send(self, key: Key, peer: Peer, work: Coroutine[object, object, None]) -> None:
        """Runs what sends a neighbor the message of this key."""
        place = (key.phase, key.role, peer)
        before = self._sending.get(place)
        busy = self._skip_busy and before is not None and not before.done()
        if busy or not self._running:
            work.close()
            return
        self._sending[place] = self.start(work)

    def cancel(self) -> None:
        """Ends all of it."""
        for task in list(self._tasks):
            task.cancel()
