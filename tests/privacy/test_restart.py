"""A process that died in mid-round and its successor: what left them both is what one process would
have released, and all of it is debited.
"""

from __future__ import annotations

from pathlib import Path

import pytest

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
