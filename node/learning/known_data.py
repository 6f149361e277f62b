"""Are a node's own data known under another ledger's name, where they have spent already?

Asked by the daemon before it releases, marks or connects anything, and by `doctor`. What comes of
it stays on the host, but for what the owner accepts: that goes into summary and model card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from node.config import BudgetSection, DataSection, RunConfig
from node.data import raw_rows
from node.maths.per_example import fetch
from node.maths.purity import keyed_seeds
from node.privacy.known_rows import Digests, Elsewhere, KnownRows, OtherName
from node.task import Task
from node.tasks import TASKS
from peer.errors import ConfigurationError

SEEDS = keyed_seeds(b"known rows")
"""Of an own task that draws: the same whenever it is asked, so that its rows are known again."""
AT_ONCE = 32
"""Rows that an own task is asked for at a time."""


@dataclass(slots=True, kw_only=True)
class KnownData:
    """One node's data, and the names under which its folder of ledgers knows them."""

    run: RunConfig
    data: DataSection
    budget: BudgetSection
    accepted: Sequence[OtherName] = field(default=(), init=False)
    """Names that the owner of the data accepts (`budget.accept_known`), after `admit`."""

    def admit(self, task: Task) -> None:
        """Notes the rows of these data under their name, unless another one has spent on them, or
        a daemon that has its ledger open is about to. The own ledger must be open.

        Raises:
            ConfigurationError: another one has, or is.
            DataError, LedgerError, StorageError: data or ledgers can't be read or written.
        """
        if self.budget.experiment or self.run.task.data != "own":
            return
        known = KnownRows(self.budget.folder, make_key=True)
        digests = known.digests(rows(self.run, self.data, task))
        with known.alone():
            self.accepted = [
                other
                for other in self._elsewhere(known, digests, ()).names
                if other.name in self.budget.accept_known
            ]
            self._refuse(self._elsewhere(known, digests, self.budget.accept_known))
            known.add(self.data.name, digests)

    def check(self, task: Task) -> None:
        """As `admit`, without noting anything."""
        if self.budget.experiment or self.run.task.data != "own":
            return
        known = KnownRows(self.budget.folder)
        if known.names():
            digests = known.digests(rows(self.run, self.data, task))
            self._refuse(self._elsewhere(known, digests, self.budget.accept_known))

    @property
    def remarks(self) -> Sequence[str]:
        """What must be said beside an ε of these data, after `admit`."""
        return [
            f"Rows of these data are known under another name, {other.name}, "
            f"{spent(other, self.budget.delta)}: no ε here counts that."
            for other in self.accepted
        ]

    def _elsewhere(self, known: KnownRows, digests: Digests, accepted: Sequence[str]) -> Elsewhere:
        return known.elsewhere(self.data.name, digests, delta=self.budget.delta, accepted=accepted)

    def _refuse(self, elsewhere: Elsewhere) -> None:
        """Raises ConfigurationError: too many rows are known."""
        if not elsewhere.names or elsewhere.share < self.budget.known_share:
            return
        other, name = elsewhere.names[0], self.data.name
        raise ConfigurationError(
            f"{elsewhere.share:.0%} of the rows of {name} are known under another name, "
            f"{other.name}, "
            f'{spent(other, self.budget.delta)}: set data.name = "{other.name}", or run peerpoise '
            f"ledger rename {other.name} {name}, or, if these are other people's rows, set "
            f'accept_known = ["{other.name}"] in [budget] of the node\'s file (docs/backup.md).'
        )


def spent(other: OtherName, delta: float) -> str:
    """What was spent under another name, in words."""
    if not other.epsilon:
        return "by which another daemon is about to learn from them"
    if not isfinite(other.epsilon):
        return "under which they were used without a guarantee (ε_total is infinite)"
    return f"under which ε_total = {other.epsilon:.3g} is spent (δ = {delta:g})"


def rows(run: RunConfig, data: DataSection, task: Task) -> Iterator[bytes]:
    """Every row of a node's own data as bytes: those of its file, or an own task's examples."""
    if run.task.name in TASKS:
        assert data.path is not None  # the task was made of it
        yield from raw_rows(data.path, run.task)
        return
    for start in range(0, task.num_examples, AT_ONCE):
        numbers = torch.arange(start, min(start + AT_ONCE, task.num_examples))
        columns = [_bytes(column) for column in fetch(task, numbers, SEEDS)]
        yield from map(b"".join, zip(*columns, strict=True))


def _bytes(column: Tensor) -> list[bytes]:
    """Of each entry of a stacked tensor [n, …]."""
    flat = column.detach().cpu().reshape(len(column), -1).contiguous()
    return [entry.tobytes() for entry in flat.view(torch.uint8).numpy()]
