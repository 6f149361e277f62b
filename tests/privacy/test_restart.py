"""A process that died in mid-round and its successor: what left them both is what one process would
have released, and all of it is debited.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from kit import LONG, TESTS, script
from kit.mortal_gate import POINTS
from kit.small_task import Small, gate
from node.privacy.ledger import Ledger
from node.randomness import Keys
from peer.message import Withheld


@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_a_round_of_another_process_gets_no_second_batch(
    task: Small, tmp_path: Path, mode: str
) -> None:
    """The debit of a shared round was for one batch; the next process would draw another."""
    x = task.initial_parameters(0)
    about = {"config_mode": mode, "config_batches": "shared"}
    withheld: list[str] = []
    with Ledger.open(tmp_path, "digits") as ledger:
        gate(task, ledger, Keys.fresh(), **about)(x, 0, "b")
    with Ledger.open(tmp_path, "digits") as ledger:
        again = gate(
            task, ledger, Keys.fresh(), on_withheld=lambda t, to, why: withheld.append(why), **about
        )
        with pytest.raises(Withheld, match="an earlier process"):
            again(x, 0, "c")
        assert not again.own(x, 0).any()
        assert (again.withheld, len(withheld), ledger.head[0]) == (2, 2, 1)
        assert again(x, 1, "c").any(), "the next round is a new one"
        assert again(x, 1, "b").any()
        assert ledger.compositions == 2


def test_independent_batches_go_on_within_the_round(task: Small, tmp_path: Path) -> None:
    """Each answer has a batch and a debit of its own, so it does not matter which process draws."""
    x = task.initial_parameters(0)
    with Ledger.open(tmp_path, "digits") as ledger:
        gate(task, ledger, Keys.fresh())(x, 0, "b")
    with Ledger.open(tmp_path, "digits") as ledger:
        again = gate(task, ledger, Keys.fresh())
        assert again(x, 0, "c").any()
        assert again.own(x, 0).any()
        with pytest.raises(Withheld):
            again(x, 0, "d")  # three a round were accounted for
        assert ledger.compositions == 3


LIVES = 50 if LONG else 2
"""Processes that are killed at each point."""


@pytest.mark.timeout(3600 if LONG else 240)
@pytest.mark.parametrize("batches", ["independent", "shared"])
def test_killed_anywhere_around_a_debit(tmp_path: Path, batches: str) -> None:
    """Whatever its successors are asked: every release is debited, none has a second one beside it,
    and a shared batch is one process's.
    """
    command = script("mortal_gate", str(tmp_path), batches, str(LIVES))
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    crossed = 0
    for point in POINTS:
        lines = [line.split() for line in (tmp_path / f"{point}.txt").read_text().splitlines()]
        released = Counter((int(t), to) for _, t, to, _ in lines)
        assert max(released.values()) == 1, "never two for one (recipient, round)"
        assert len({digest for *_, digest in lines}) == len(lines)
        with Ledger.open(tmp_path, point) as ledger:
            debited = [(entry.round, entry.recipient) for entry in ledger.entries()]
            assert released.keys() <= {*debited}, point
            rounds = {t for t, _ in debited}
            paid = len(rounds) if batches == "shared" else len(debited)
            assert ledger.compositions == paid
        lives = {t: {life for life, when, *_ in lines if int(when) == t} for t in rounds}
        crossed += sum(len(each) > 1 for each in lives.values())
        lost = len(debited) - len(lines)
        assert (lost >= LIVES) is (point in LOST), (point, lost)
    assert (crossed > 0) is (batches == "independent"), "who died in mid-round was followed"


LOST = ("before_ledger_head", "after_ledger_fsync", "before_sending")
"""Where a debit is on disk, and its release is never made."""
