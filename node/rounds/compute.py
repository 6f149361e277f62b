"""The one compute thread of a daemon: all tensor work happens here, so the event loop never waits
for arithmetic.

Answers to neighbors go before own work. Own work that takes long calls `yield_point` between its
chunks (the gate and the evaluation do): that counts as progress, lets waiting answers run, and ends
the work when the daemon is to stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import torch

from node.task import Stopped

R = TypeVar("R")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")


class Compute:
    """Create it on the event loop's thread."""

    def __init__(self, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.progress = 0
        """Chunks of work done; heartbeats carry it, so that slow is not taken for dead."""
        self._loop = asyncio.get_running_loop()
        self._answers: deque[Callable[[], None]] = deque()
        self._own: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[*Ts], R], *arguments: *Ts) -> R:
        """The result of own work."""
        return await self._put(self._own, partial(work, *arguments))

    async def run_priority(self, work: Callable[[*Ts], R], *arguments: *Ts) -> R:
        """The result of work for a neighbor: runs before own work that waits, and between the
        chunks of such work.
        """
        return await self._put(self._answers, partial(work, *arguments))

    def yield_point(self) -> None:
        """Called between chunks of work, in the compute thread.

        Raises:
            Stopped: the daemon is to stop.
        """
        self.progress += 1
        while self._answers and not self._stopped:
            self._answers.popleft()()
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """No further work is begun; running work ends at its next yield point."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    async def join(self, seconds: float) -> bool:
        """Waits for the thread's end; False when it did not come in time (it dies with the
        process).
        """
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            self.progress += 1

    def _next(self) -> Callable[[], None] | None:
        with self._wake:
            while not (self._answers or self._own or self._stopped):
                self._wake.wait()
            if self._stopped:
                return None
            return self._answers.popleft() if self._answers else self._own.popleft()

    async def _put(self, queue: deque[Callable[[], None]], work: Callable[[], R]) -> R:
        future: asyncio.Future[R] = self._loop.create_future()

        def settle(set_it: Callable[[V], None], value: V) -> None:
            if not future.done():
                set_it(value)

        def job() -> None:
            if future.cancelled():
                return  # nobody wants it any more, so it is not worth a debit either
            try:
                result = work()
            except Stopped:
                self._loop.call_soon_threadsafe(future.cancel)
            except BaseException as error:
                self._loop.call_soon_threadsafe(settle, future.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(settle, future.set_result, result)

        with self._wake:
            if self._stopped:
                raise asyncio.CancelledError
            queue.append(job)
            self._wake.notify()
        return await future
