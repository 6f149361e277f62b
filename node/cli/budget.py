"""`peerpoise budget`: what was spent of data, by which runs, and what is left; read from their
ledgers, also while daemons write to them.

ε of everything together is not the sum of the runs': it is composed, and smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from node.config import BudgetSection, NodeConfig, load
from node.config.task import adjacency
from node.daemon.bootstrap import resolve_paths
from node.encoding import Json
from node.privacy.accountant import epsilon_pld, units
from node.privacy.ledger import Ledger, RunOfLedger
from node.records.journal import plain
from node.records.summary import AGAINST
from peer.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpent:
    """What one run has spent."""

    run: str
    mode: str
    rounds: int
    debits: int
    lost: int
    """Debits among them that stand for lost ones (`ledger count-lost`)."""
    epsilon: float
    """ε_total of this run alone; inf: it had no guarantee."""
    first: str
    last: str
    """Times of its first and last debit, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a ledger says of its data; every ε is at `delta`."""

    data: str
    ledger: str
    """Its folder."""
    delta: float
    adjacency: str
    """What ε holds for; of runs that protect different units there is none that is finite."""
    spent: float
    """ε_total of all runs together."""
    limit: float | None
    """None: there is none, or it is not known here."""
    left: float | None
    """Of the limit."""
    runs: Sequence[RunSpent]


def account(budget: BudgetSection, data: str) -> Account:
    """Of the data of this name; of nothing, if there is no such ledger yet.

    Raises:
        ConfigurationError: the name is none, or the ledger has another one now.
        LedgerError: it can't vouch for what was spent.
    """
    limit = budget.epsilon if isinstance(budget.epsilon, float | int) else None
    with closing(Ledger.look(budget.folder, data)) as ledger:
        runs = [_run(ledger, run, budget.delta) for run in ledger.runs()]
        rows = ledger.rows()
    spent = epsilon_pld(rows, budget.delta)
    return Account(
        data=data,
        ledger=str(budget.folder),
        delta=budget.delta,
        adjacency=" and ".join(map(adjacency, sorted(units(rows)))) or adjacency(""),
        spent=spent,
        limit=limit,
        left=None if limit is None else max(0.0, limit - spent),
        runs=runs,
    )


def _run(ledger: Ledger, run: RunOfLedger, delta: float) -> RunSpent:
    return RunSpent(
        run=run.run,
        mode=run.mode,
        rounds=run.rounds,
        debits=run.debits,
        lost=run.lost,
        epsilon=epsilon_pld(ledger.rows(run.run), delta),
        first=run.first,
        last=run.last,
    )


def accounts(file: Path | None, name: str, delta: float | None) -> list[Account]:
    """Of the data of this name, or of a node.toml's, or of all in the folder of ledgers.

    Args:
        file: a node.toml, which says where ledgers lie, and has δ and limit of its own data.
        delta: instead of the file's.

    Raises:
        ConfigurationError, LedgerError: as `account`; or there is no ledger at all.
    """
    budget = BudgetSection(epsilon="unlimited")
    if file is not None:
        node = resolve_paths(load(NodeConfig, [file]), file.parent)
        budget = node.budget
        if name and name != node.data.name:  # the file's limit is of its own data
            budget = budget.model_copy(update={"epsilon": "unlimited"})
        name = name or node.data.name
    if delta is not None:
        if not 0 < delta < 1:
            raise ConfigurationError(f"--delta {delta:g} is no δ; it lies between 0 and 1.")
        budget = budget.model_copy(update={"delta": delta})
    names = [name] if name else Ledger.names(budget.folder)
    if not names:
        raise ConfigurationError(
            f"There is no ledger in {budget.folder}; if they lie elsewhere, name a node's file "
            "with --config."
        )
    return [account(budget, each) for each in names]


def document(listed: Sequence[Account]) -> list[Json]:
    """For programs; what is not finite is None."""
    converted: list[Json] = plain([asdict(each) for each in listed])
    return converted


def show(listed: Sequence[Account]) -> RenderableType:
    """For people."""
    from rich.console import Group

    return Group(*(part for each in listed for part in _shown(each)))


def _shown(of: Account) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(sentence(of))
    if of.runs:
        yield runs_table(of)
    yield Text()


def runs_table(of: Account) -> Table:
    """Which runs spent it."""
    from rich.table import Table
    from rich.text import Text

    columns = ("run", "mode", "rounds", "debits", "ε_total", "from", "to")
    table = Table(*columns, box=None, pad_edge=False)
    for run in of.runs:
        debits = f"{run.debits}, {run.lost} of them lost" if run.lost else str(run.debits)
        cells = (run.mode, str(run.rounds), debits, number(run.epsilon), run.first, run.last)
        table.add_row(*map(Text, (run.run, *cells)))
    return table


def sentence(of: Account) -> str:
    """What was spent in all, its conditions, and what is left."""
    if not of.runs:
        return f"Nothing was released under the name {of.data} yet: ε_total = 0 ({of.ledger})."
    left = "the limit is in the node's file (--config)"
    if of.limit is not None and of.left is not None:
        left = f"{number(of.left)} of {of.limit:g} are left"
    return (
        f"The data {of.data} have spent ε_total = {number(of.spent)} over all runs "
        f"({of.adjacency}, δ = {of.delta:g}, PLD, {AGAINST}); {left}."
    )


def number(epsilon: float) -> str:
    return f"{epsilon:.3g}" if isfinite(epsilon) else "infinite"
