"""`peerpoise health`: are this user's daemons alive? For a container's HEALTHCHECK and other
probes.

Asks their status sockets, which the event loop answers: no network, no certificate, no torch. A
daemon has its socket a few seconds after its start, when torch is loaded; give a probe that long.
"""

from __future__ import annotations

from pathlib import Path

from node.observability import status
from node.observability.status import Status
from peer.errors import PeerpoiseError, TemporaryFailure


def check(*, ready: bool, folder: Path | None = None) -> list[Status]:
    """What every daemon of this user says, or those that answer in this folder. `ready`: each must
    also be running rounds.

    Raises:
        PeerpoiseError: there is none, one does not answer, or one is not ready.
    """
    try:
        statuses = [status.query(path) for path in status.find(folder)]
    except TemporaryFailure as error:
        raise PeerpoiseError(str(error)) from None
    if not statuses:
        raise PeerpoiseError("No daemon of this user is running.")
    for answer in statuses:
        if ready and not status.is_ready(answer["state"]):
            raise PeerpoiseError(
                f"{answer['node']} is not running rounds: it is {answer['state']}."
            )
    return statuses
