"""A real daemon whose event loop is watched; the report is written when it ends.

    python -m kit.monitored_daemon NODE.toml REPORT.json LOOP [SPOIL…]

Every callback's own CPU time (asyncio only: uvloop's handles can't be wrapped), every blocking call
on the loop's thread with the product's frames above it, and the wall time of every heartbeat. SPOIL
is a fault to be found.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from blockbuster import BlockBuster, BlockBusterFunction

from kit import ROOT
from node.daemon import bootstrap
from node.daemon.telemetry import Telemetry
from peer.message import Peer
from peer.session.heartbeat import Heartbeats

BEAT_SECONDS = 0.02
"""Between two heartbeats to a neighbor: many samples in a short run."""
ALSO = (
    "builtins.open",
    "io.open",
    "io.FileIO.write",
    "io.FileIO.readall",
    "os.fsync",
    "os.fdatasync",
    "os.open",
    "os.pread",
    "os.pwrite",
    "os.ftruncate",
    "socket.getaddrinfo",
    "threading.Thread.join",
    "threading.Event.wait",
)
"""Calls that may wait and that blockbuster does not know."""


class Report:
    """What was seen of the loop."""

    def __init__(self) -> None:
        self.callbacks = 0
        self.slowest: list[tuple[float, str]] = []
        """(CPU seconds, which) of the ten slowest callbacks."""
        self.state = "starting"
        """The daemon's, as `peerpoise status` shows it."""
        self.blocking: Counter[str] = Counter()
        """"state: call < frames of the product, innermost first" -> how often."""
        self.heartbeats: list[tuple[str, float, int]] = []
        """(state, seconds, frames moved so far) of every heartbeat's round trip."""
        self.frames = 0

    def ran(self, seconds: float, what: Callable[[], str]) -> None:
        self.callbacks += 1
        if len(self.slowest) < 10 or seconds > self.slowest[-1][0]:
            self.slowest = sorted([*self.slowest, (seconds, what())], reverse=True)[:10]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(vars(self)), encoding="utf-8")


def time_callbacks(report: Report) -> None:
    """Wraps every handle that an asyncio loop runs."""
    run = asyncio.Handle._run

    def timed(handle: Any) -> None:
        start = time.thread_time()
        run(handle)
        report.ran(time.thread_time() - start, lambda: repr(handle))

    setattr(asyncio.Handle, "_run", timed)  # noqa: B010


def note_blocking(report: Report) -> None:
    """blockbuster finds the calls; they are noted and go on, so that one finding doesn't hide the
    next.
    """
    functions = BlockBuster().functions
    functions |= {name: BlockBusterFunction(None, name) for name in ALSO if name not in functions}
    for name, function in functions.items():
        function.can_block_predicate = _noting(report, name, function, function.can_block_predicate)
        function.activate()


def _noting(
    report: Report, name: str, function: BlockBusterFunction, harmless: Callable[..., bool]
) -> Callable[..., bool]:
    def log_event(*arguments: Any, **options: Any) -> bool:
        if not harmless(*arguments, **options):
            stack = traceback.extract_stack()[:-2]
            allowed = function.can_block_functions
            if not any(
                at.filename.endswith(file) and at.name in names
                for at in stack
                for file, names in allowed
            ):
                report.blocking[f"{report.state}: " + " < ".join([name, *_ours(stack)])] += 1
        return True

    return log_event


def _ours(stack: Sequence[traceback.FrameSummary]) -> list[str]:
    """ "file:function" of the frames in the product, innermost first; of anything else where there
    are none.
    """
    own = [
        at for at in stack if Path(at.filename).is_relative_to(ROOT) and ".venv" not in at.filename
    ]
    return [
        f"{Path(at.filename).name}:{at.name}"
        for at in reversed(own)
        if at.name not in ("<module>", "main")
    ]


def hear_beats(report: Report, spoil: Callable[[], None]) -> None:
    """Beats every BEAT_SECONDS and notes the round trips, and how many frames were moved until
    then.
    """
    attach, set_state, round_trip, bytes_moved = (
        Telemetry.attach,
        Telemetry.set_state,
        Telemetry.round_trip,
        Telemetry.bytes_moved,
    )

    def attached(watch: Telemetry, learner: Any, session: Any, addresses: Any) -> None:
        attach(watch, learner, session, addresses)
        session.heartbeat_seconds = BEAT_SECONDS
        spoil()

    def became(watch: Telemetry, state: str, *reason: str) -> None:
        report.state = state
        set_state(watch, state, *reason)

    def moved(watch: Telemetry, *what: Any) -> None:
        bytes_moved(watch, *what)
        report.frames += 1

    def noted(watch: Telemetry, peer: Peer, seconds: float) -> None:
        round_trip(watch, peer, seconds)
        report.heartbeats.append((report.state, seconds, report.frames))

    instead = {"attach": attached, "set_state": became, "round_trip": noted, "bytes_moved": moved}
    for name, method in instead.items():
        setattr(Telemetry, name, method)


def burn() -> None:
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass


def nap() -> None:
    time.sleep(0.1)


def save() -> None:
    Path("/dev/null").write_text("x", encoding="utf-8")


FAULTS = {"burn": burn, "nap": nap, "save": save}
EVERY = 0.3
"""Seconds between two faults."""
DELAYED = 20
"""One in so many heartbeats is late where that is the fault."""


def again(fault: Callable[[], None]) -> None:
    fault()
    asyncio.get_running_loop().call_later(EVERY, again, fault)


def delay_heartbeats() -> None:
    """The loop naps while one is under way."""
    make, number = Heartbeats.make, count()

    def made(heartbeats: Heartbeats, peer: Peer) -> Any:
        if next(number) % DELAYED == 0:
            asyncio.get_running_loop().call_soon(nap)
        return make(heartbeats, peer)

    setattr(Heartbeats, "make", made)  # noqa: B010


def main(node: str, to: str, loop: str, *spoils: str) -> None:
    report = Report()
    if loop == "asyncio":
        time_callbacks(report)
    note_blocking(report)

    def spoil() -> None:
        for name in spoils:
            if name != "delay":
                again(FAULTS[name])

    if "delay" in spoils:
        delay_heartbeats()

    hear_beats(report, spoil)
    try:
        bootstrap.serve(Path(node), loop=loop)
    finally:
        report.write(Path(to))


if __name__ == "__main__":
    main(*sys.argv[1:])
