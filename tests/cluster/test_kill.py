"""kill -9 in mid-round: the others go on, the node comes back, and nothing left it that its ledger
does not know.

By default three points; all of them at every place in the order of names, which decides who proposes
an edge: `make kill-matrix`.
"""

from __future__ import annotations

import signal
from itertools import product
from typing import Any

import pytest

from kit import LONG
from kit.clusters import NEVER, Process, Witness, debits, events, faults

PER_ROUND = {
    "round_start": 1,
    "before_send": 6,
    "mid_stream": 6,
    "after_send": 6,
    "after_recv": 6,
    "before_noise": 3,
    "after_noise": 3,
    "before_ledger_append": 3,
    "after_ledger_append": 3,
    "before_ledger_head": 3,
    "after_ledger_fsync": 3,
    "before_aggregate": 1,
    "after_aggregate": 1,
    "before_round_commit": 1,
    "before_checkpoint_rename": 1,
    "after_checkpoint_rename": 1,
}
"""Point -> how often a node with two neighbors passes it in a round of DPDL."""
NAMES = ["n0", "n1", "n2"]
FEW = [("mid_stream", "n1"), ("after_ledger_fsync", "n2")]
MATRIX = list(product(PER_ROUND, NAMES)) if LONG else FEW
CASES = [(point, victim, "") for point, victim in MATRIX] + [("round_start", "n0", "n1")]
"""The last: one of the others is a process too."""
ROUNDS = 12
HOLD = 5
"""The others stay in this round until the killed node is back. It may by then be one round ahead of
one of them, and an edge is used from two rounds later at most."""


@pytest.mark.cluster
@pytest.mark.parametrize(("point", "victim", "process"), CASES)
async def test_kill(cluster: Any, point: str, victim: str, process: str) -> None:
    many = PER_ROUND[point]
    at = 2 * many + 1 + many // 2  # in the third round, about half way through those of its passes
    async with cluster(rounds=ROUNDS, sync={"deadline_s": 10.0}) as c:
        others = [c.witness(name, limit=HOLD) for name in NAMES if name not in (victim, process)]
        real = c.start(process) if process else None
        first = c.start(victim, failpoints=f"{point}=kill@{at}")
        assert await first.ended() == -signal.SIGKILL
        spent = debits(c.homes[victim])
        seen = max(max(witness.released(victim), default=-1) for witness in others)
        assert seen in (1, 2, 3), "it died in its third round"
        assert faults(victim, others, spent) == []

        again = c.start(victim)
        await came_back(again, others, victim)
        assert resumed(again) > max(t for t, _ in spent)
        for witness in others:
            witness.limit = NEVER
        for witness in others:
            assert await witness.task == 0
            assert [event["round"] for event in rounds_of(witness)] == list(range(ROUNDS))
        if real:
            assert await real.ended() == 0
            assert [event["round"] for event in real.events("round")] == list(range(ROUNDS))
            assert victim in {
                event["peer"] for event in real.events("peer") if event["state"] == "not live"
            }
        assert await again.ended() == 0
        entered = min(event["round"] for event in since_start(again, "phase"))
        assert entered >= resumed(again)
        assert [event["round"] for event in since_start(again, "round")] == list(
            range(entered, ROUNDS)
        )
        spent_now = debits(c.homes[victim])
        assert spent.items() <= spent_now.items()
        assert faults(victim, others, spent_now) == []
        for witness in others:
            assert set(witness.released(victim)) >= set(range(HOLD + 3, ROUNDS)), "it answers again"
            del spent_now[ROUNDS - 1, witness.node.name]  # the power check
        assert len(faults(victim, others, spent_now)) == len(others)


async def came_back(process: Process, others: list[Witness], victim: str) -> None:
    """All others stay in their round meanwhile: they did not wait for the dead one, and wait for
    nobody now.
    """

    def back() -> bool:
        return all(
            witness.held and victim in witness.session.table.membership.agreed()
            for witness in others
        )

    await process.until(lambda: (it := process.status()) and it["state"] == "running" and back())


def since_start(process: Process, kind: str) -> list[dict[str, Any]]:
    """Events of the last process."""
    found: list[dict[str, Any]] = []
    for event in process.events("header", kind):
        found = [] if event["event"] == "header" else [*found, event]
    return found


def resumed(process: Process) -> int:
    """The first round that the node allowed itself."""
    return int(since_start(process, "resume")[0]["round"])


def rounds_of(witness: Witness) -> list[dict[str, Any]]:
    return events(witness.node.folder, "round")
