"""Records whose loss or gradient is not finite, reported to the data's owner only.

In mode strict they are private: standard error is the owner's; journal, status, metrics and
summary, which others may read, don't have them. They contribute nothing to any release.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from peer.message import Peer

SHOWN = 5
"""Row numbers in a sentence."""


def _on_standard_error(sentence: str) -> None:
    print(f"peerpoise: {sentence}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class UnusableRecords:
    """Collects their row numbers; says so at the first, and again whenever their number has
    doubled.
    """

    node: Peer
    tell: Callable[[str], None] = _on_standard_error
    rows: set[int] = field(default_factory=set)
    unit: str = ""
    """As in `[task]`: then the numbers are of persons, in the order of their names."""
    _told: int = 0

    def __call__(self, t: int, rows: Tensor) -> None:
        """`rows`: int64 [k] row numbers, met in round t."""
        self.rows |= set(rows.tolist())
        if len(self.rows) >= max(1, 2 * self._told):
            self._told = len(self.rows)
            self.tell(self.sentence(t))

    def sentence(self, t: int) -> str:
        shown = ", ".join(map(str, sorted(self.rows)[:SHOWN])) + (
            ", …" if len(self.rows) > SHOWN else ""
        )
        count = f"{len(self.rows)} record{'s' * (len(self.rows) > 1)}"
        which = "row"
        if self.unit:
            count, which = f"{len(self.rows)} {self.unit}", "sorted, and counted from 0, number"
        return (
            f"{self.node}, round {t}: the loss or gradient of {count} ({which} {shown}) is not "
            "finite, so they can't be learned from; look for empty masks, missing or huge values, "
            "logarithms of 0."
        )
