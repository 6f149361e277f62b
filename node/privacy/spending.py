"""What the entries of a ledger come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from node.privacy.accountant import Mechanism, Spent, epsilon_rdp
from node.privacy.ledger_database import Entry, Kind


class Spending:
    """Entries, added up one by one. A shared batch counts once a round, whoever got an answer."""

    def __init__(self) -> None:
        self._compositions: dict[tuple[str, Mechanism], int] = {}
        self._debits: Counter[tuple[str, str]] = Counter()
        """(run, recipient) -> debits."""
        self._shared: set[tuple[str, int]] = set()
        """(run, round) of the shared batches that are paid for."""

    def add(self, run: str, round: int, recipient: str, mechanism: Mechanism) -> None:
        """One entry more."""
        shared = mechanism.batches == "shared"
        paid = shared and (run, round) in self._shared
        if shared:
            self._shared.add((run, round))
        key = (run, replace(mechanism, sigma=float(mechanism.sigma), rate=float(mechanism.rate)))
        self._compositions[key] = self._compositions.get(key, 0) + (not paid)
        self._debits[run, recipient] += 1

    @property
    def compositions(self) -> int:
        """All mechanisms together."""
        return sum(self._compositions.values())

    def rows(self, run: str | None = None) -> list[Spent]:
        """Of everything, or of one run, run-length coded for the accountant."""
        total: dict[Mechanism, int] = {}
        for (of, mechanism), compositions in self._compositions.items():
            if run is None or of == run:
                total[mechanism] = total.get(mechanism, 0) + compositions
        return [Spent(mechanism, compositions) for mechanism, compositions in total.items()]

    def longest(self, run: str) -> int:
        """The most debits of this run for one recipient."""
        return max(
            (count for (of, recipient), count in self._debits.items() if of == run and recipient),
            default=0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEpsilon:
    """ε after a round; by Rényi divergence, like every figure that is followed round by round."""

    run: str
    kind: Kind
    round: int
    """Of a debit; of marks and lost debits, which have none, the first row's."""
    time: str
    """Of the last entry."""
    debits: int
    """In this round or part of one, by this mechanism."""
    mechanism: Mechanism
    of_mechanism: float
    """Of all that was ever released by this mechanism, in any run."""
    of_run: float
    lifetime: float
    """Of everything; inf: there is no guarantee."""


def by_round(entries: Iterable[Entry], delta: float) -> Iterator[RoundEpsilon]:
    """ε at `delta` after each round, or each mechanism of a round that has several; a round whose
    entries have others between them comes once for each part."""
    spending = Spending()
    for (run, kind, _, mechanism), group in groupby(entries, _round_of):
        of_round = list(group)
        for entry in of_round:
            spending.add(run, entry.round, entry.recipient, mechanism)
        ever = spending.rows()
        yield RoundEpsilon(
            run=run,
            kind=kind,
            round=of_round[0].round,
            time=of_round[-1].time,
            debits=len(of_round),
            mechanism=mechanism,
            of_mechanism=epsilon_rdp([row for row in ever if row.mechanism == mechanism], delta),
            of_run=epsilon_rdp(spending.rows(run), delta),
            lifetime=epsilon_rdp(ever, delta),
        )


def _round_of(entry: Entry) -> tuple[str, Kind, int, Mechanism]:
    """What the entries of one round have in common; all those of lost debits are one round."""
    return entry.run, entry.kind, max(entry.round, -1), entry.mechanism
