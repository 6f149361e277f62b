"""Virtual time: an event loop whose clock stands still while anything works, and jumps to the next
timer when nothing does (as trio's autojump clock). Tests with the mark `virtual_time` run on it.

So a deadline of minutes takes no time, and none passes because a machine is busy. What is asked of
a test: nothing but asyncio's timers, what runs in the compute threads of a mesh and
`asyncio.to_thread` may take time. A compute thread that is to be slow in virtual time calls `sleep`;
one that is to hang waits for an `Event` of this module, not for one of `threading`.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from node.rounds.compute import Compute

TURN = 1e-6
"""Seconds that a turn of the loop takes, so that nothing takes none."""
JOB = 1e-3
"""Seconds that a job in a compute thread takes, so that who never waits does not stop the clock."""
LOOK = 0.01
"""Real seconds between two looks at threads that work."""
REAL_SECONDS = 200.0
"""After which a thread that hangs gives up: its test has failed."""
THREADS: WeakKeyDictionary[threading.Thread, Counted] = WeakKeyDictionary()
"""Whose compute thread it is."""


class Loop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self) -> None:
        self.now = 0.0
        self.computes: list[Counted] = []
        self._in_executor, self._lock = 0, threading.Lock()
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        """Time passes while this loop stands still."""
        with self._lock:
            self.now += seconds

    @property
    def working(self) -> bool:
        return self._in_executor > 0 or any(compute.working for compute in self.computes)

    def run_in_executor(self, *arguments: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(*arguments)
        self._in_executor += 1
        future.add_done_callback(self._left_executor)
        return future

    def _left_executor(self, future: Any) -> None:
        self._in_executor -= 1


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it lets that time pass."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.loop.jump(TURN)
        idle = not self.loop.working  # first: what then came to an end has said so already
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if not idle or timeout is None:
            return super().select(LOOK)
        self.loop.jump(timeout)
        return []


class Counted(Compute):
    """A compute thread that says whether it works."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs, self._hanging, self._lock = 0, 0, threading.Lock()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self.loop = loop
        loop.computes.append(self)
        THREADS[self._thread] = self

    @property
    def working(self) -> bool:
        return self._jobs > 0 and not self._hanging and not self._stopped

    def count(self, *, jobs: int = 0, hanging: int = 0) -> None:
        with self._lock:
            self._jobs += jobs
            self._hanging += hanging

    async def _put(self, queue: Any, work: Callable[[], Any]) -> Any:
        return await super()._put(_Counting(self, queue), work)  # type: ignore[arg-type]


class _Counting:
    """A queue whose jobs count until they have said what came of them."""

    def __init__(self, compute: Counted, queue: Any) -> None:
        self.compute, self.queue = compute, queue

    def append(self, job: Callable[[], None]) -> None:
        def counted() -> None:
            try:
                job()
            finally:
                self.compute.loop.jump(JOB)
                self.compute.count(jobs=-1)

        self.compute.count(jobs=1)
        self.queue.append(counted)


MADE: list[Compute] = []
"""For meshes of the test that runs."""


def compute() -> Compute:
    """For a mesh, on the running loop; it ends with the test: not all nodes of a mesh live."""
    made = Counted() if isinstance(asyncio.get_running_loop(), Loop) else Compute()
    MADE.append(made)
    return made


def end_computing() -> None:
    """Ends the threads that meshes did not end themselves."""
    while MADE:
        made = MADE.pop()
        made.stop()
        made._thread.join(5.0)


class Event:
    """`threading.Event` for compute threads: who waits for it does not work, and waits in virtual
    time.
    """

    def __init__(self) -> None:
        self._is_set, self._lock = False, threading.Lock()
        self._waiting: dict[threading.Event, Counted | None] = {}

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            for wake in list(self._waiting):
                self._end(wake)

    def wait(self, seconds: float | None = None) -> None:
        """Until it is set, or for so long."""
        wake, compute = threading.Event(), THREADS.get(threading.current_thread())
        with self._lock:
            if self._is_set:
                return
            self._waiting[wake] = compute
            if compute and seconds is not None:  # before it counts as idle, or time jumps first
                loop = compute.loop
                loop.call_soon_threadsafe(loop.call_later, seconds, self._elapsed, wake)
            if compute:
                compute.count(hanging=1)
        assert wake.wait(REAL_SECONDS if seconds is None or compute else seconds) or not compute

    def _elapsed(self, wake: threading.Event) -> None:
        with self._lock:
            self._end(wake)

    def _end(self, wake: threading.Event) -> None:
        if wake in self._waiting:
            if compute := self._waiting.pop(wake):
                compute.count(hanging=-1)
            wake.set()


def sleep(seconds: float) -> None:
    """So long: in a compute thread of a loop of this module in virtual time, elsewhere in real."""
    Event().wait(seconds)
