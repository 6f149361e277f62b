"""Processes that die while they release, one after the other, on one ledger: what `test_restart`
looks at.

    python -m kit.mortal_gate FOLDER BATCHES LIVES

For every failpoint around a release, so many processes are forked that are killed there, at their
first to fifth pass, and a last one that lives. Each asks for everything from the first round on, in
two ways, as neighbors may that have heard nothing of the death, and writes what it was given to
FOLDER/POINT.txt: life, round, recipient, SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kit.small_task import gate, make_small
from node.privacy.gate import DPGate
from node.privacy.ledger import Ledger
from node.randomness import Keys
from peer import failpoint
from peer.message import Withheld

POINTS = (
    "before_noise",
    "after_noise",
    "before_ledger_append",
    "after_ledger_append",
    "before_ledger_head",
    "after_ledger_fsync",
    "before_sending",
    "after_sending",
)
"""The last two are of this program: between the debit and the wire, and after it."""
RECIPIENTS = ("b", "a", "c")
"""a is the node itself."""


def live(strict: DPGate, folder: Path, point: str, life: int, question: Tensor) -> None:
    """One process, from its start to its death, or to the last round."""
    sent = os.open(folder / f"{point}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with Ledger.open(folder, point) as ledger:
        own = replace(strict, ledger=ledger, keys=Keys.fresh())
        for t in range(own.config.rounds):
            for x in (question, question + 1):
                for to in RECIPIENTS:
                    send(own, sent, life, x, t, to)


def send(strict: DPGate, sent: int, life: int, x: Tensor, t: int, to: str) -> None:
    try:
        answer = strict(x, t, to)
    except Withheld:
        return
    if not answer.any():  # withheld from itself
        return
    digest = hashlib.sha256(answer.numpy().tobytes()).hexdigest()
    failpoint.failpoint("before_sending")
    os.write(sent, f"{life} {t} {to} {digest}\n".encode())
    failpoint.failpoint("after_sending")


def main(folder: Path, batches: str, lives: int) -> None:
    task = make_small(n=12)
    rounds = 2 + 2 * lives
    with Ledger.in_memory() as unused:
        strict = gate(
            task,
            unused,
            rounds=rounds,
            config_batches=batches,
            config_backend="ghost",
            config_batch=6,
        )
    assert isinstance(strict, DPGate)
    question = task.initial_parameters(0)
    for point in POINTS:
        for life in range(lives + 1):
            child = os.fork()
            if not child:
                if life < lives:
                    os.environ[failpoint.VARIABLE] = f"{point}=kill@{1 + life % 5}"
                    failpoint.arm()
                live(strict, folder, point, life, question)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert died == (life < lives), (point, life, status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
