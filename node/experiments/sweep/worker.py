"""A process that runs cells: a JSON line in, lines out. torch is imported once, not once a cell.

    in    {"key", "configuration", "scratch"}
    out   {"key", "share"} now and then, then {"key", "record"} or {"key", "error", "trace"}

When standard input ends, because the sweep is done or was killed, the process ends at once, also in
the middle of a cell. What a cell prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import TextIO

from node.encoding import Json

EVERY_S = 0.5
"""Seconds between two words on how far a cell is."""


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group; the sweep decides
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, orders), daemon=True).start()
    while True:
        order = json.loads(orders.get())
        _say(out, {"key": order["key"], **_answer(order, out)})


def _read(stream: TextIO, orders: queue.SimpleQueue[str]) -> None:
    for line in stream:
        orders.put(line)
    os._exit(0)


def _answer(order: Json, out: TextIO) -> Json:
    from node.experiments.sweep.trial import run_trial

    reported = time.monotonic()

    def progress(share: float) -> None:
        nonlocal reported
        if time.monotonic() - reported > EVERY_S:
            reported = time.monotonic()
            _say(out, {"key": order["key"], "share": share})

    try:
        return {"record": run_trial(order["configuration"], progress, order["scratch"])}
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> Json:
    """What became of a cell, in one sentence; the traceback of what is no mistake of the user's."""
    from peer.errors import PeerpoiseError

    if isinstance(error, PeerpoiseError):
        return {"error": str(error), "trace": ""}
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return {
            "error": "This machine has too little memory for this cell; take fewer --jobs.",
            "trace": "",
        }
    sentence = f"This is a bug in peerpoise ({type(error).__name__}: {error}); please report it."
    return {"error": sentence, "trace": "".join(traceback.format_exception(error))}


def _say(out: TextIO, line: dict[str, object]) -> None:
    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
