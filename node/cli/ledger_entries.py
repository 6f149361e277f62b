"""What `peerpoise ledger show | verify | export` say of the ledgers in a folder; they only read,
also while daemons write.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TypeAlias

from node.config import BudgetSection, NodeConfig, load
from node.daemon.bootstrap import resolve_paths
from node.privacy.accountant import Mechanism
from node.privacy.known_rows import KnownRows
from node.privacy.ledger import Ledger
from node.privacy.ledger_database import Entry, Kind
from node.privacy.spending import by_round
from peer.errors import ConfigurationError, PeerpoiseError

Record: TypeAlias = Mapping[str, str | int | float | None]
"""A line of a table, by the names of its columns."""
_MADE = ("mode", "unit", "sigma", "rate", "batches", "releases")
"""How an answer was made."""
COLUMNS: Sequence[str] = ("entry", "time", "run", "round", "kind", "recipient", *_MADE)
"""Of the entries."""
_SPENT = ("epsilon_mechanism", "epsilon_run", "epsilon_lifetime", "delta", "accountant")
ROUND_COLUMNS: Sequence[str] = ("time", "run", "round", "kind", "debits", *_MADE, *_SPENT)
"""Of ε by rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a ledger can vouch for what was spent."""

    ledger: str
    whole: bool
    entries: int
    head: str
    """SHA-256 of the last entry, hex."""
    sentence: str
    """What was verified, or what is wrong and what to do."""


def folder_and_names(file: Path | None, name: str) -> tuple[BudgetSection, list[str]]:
    """Where ledgers lie, and which are meant: the one named, a node.toml's, or all there are.

    Raises:
        ConfigurationError: there is none.
    """
    budget = BudgetSection(epsilon="unlimited")
    if file is not None:
        node = resolve_paths(load(NodeConfig, [file]), file.parent)
        budget, name = node.budget, name or node.data.name
    names = [name] if name else Ledger.names(budget.folder)
    for each in names:
        if not Ledger.exists(budget.folder, each):
            Ledger.look(budget.folder, each).close()  # it may have another name now
            raise ConfigurationError(f"There is no ledger {each} in {budget.folder}.")
    if not names:
        raise ConfigurationError(
            f"There is no ledger in {budget.folder}; if they lie elsewhere, name a node's file "
            "with --config."
        )
    return budget, names


def verify(folder: Path, name: str) -> Verdict:
    """Reads all of a ledger: chain, head, the rows it knows."""
    try:
        with closing(Ledger.look(folder, name)) as ledger:
            sequence, digest = ledger.head
            rows = KnownRows(folder).read(name)
    except PeerpoiseError as error:
        return Verdict(ledger=name, whole=False, entries=0, head="", sentence=str(error))
    knows = "" if rows is None else "; the rows it knows can be read"
    sentence = (
        f"{name} is whole: {sequence} entries, chained without a gap up to its head "
        f"{digest.hex()[:16]}{knows}."
    )
    return Verdict(ledger=name, whole=True, entries=sequence, head=digest.hex(), sentence=sentence)


def records(entries: Sequence[Entry]) -> list[Record]:
    """Entries, for programs."""
    return [
        {
            "entry": entry.sequence,
            "time": entry.time,
            "run": entry.run,
            "round": _round(entry.kind, entry.round),
            "kind": entry.kind,
            "recipient": entry.recipient,
            **_made(entry.mechanism),
        }
        for entry in entries
    ]


def epsilon_by_round(entries: Sequence[Entry], delta: float) -> list[Record]:
    """ε after each round, and each mechanism of it: of the mechanism, of the run, and of all."""
    return [
        {
            "time": after.time,
            "run": after.run,
            "round": _round(after.kind, after.round),
            "kind": after.kind,
            "debits": after.debits,
            **_made(after.mechanism),
            "epsilon_mechanism": after.of_mechanism,
            "epsilon_run": after.of_run,
            "epsilon_lifetime": after.lifetime,
            "delta": delta,
            "accountant": "RDP",
        }
        for after in by_round(entries, delta)
    ]


def _made(mechanism: Mechanism) -> Record:
    return {
        "mode": mechanism.mode,
        "unit": mechanism.unit,
        "sigma": mechanism.sigma,
        "rate": mechanism.rate,
        "batches": mechanism.batches,
        "releases": mechanism.releases,
    }


def _round(kind: Kind, round: int) -> int | None:
    """Marks and lost debits have none."""
    return round if kind == "debit" else None


def csv_lines(records: Sequence[Record], columns: Sequence[str]) -> Iterator[str]:
    """RFC 4180, but for the ends of lines; what is not known is empty."""
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    yield from text.getvalue().removesuffix("\n").split("\n")


def lines(entries: Sequence[Entry]) -> Iterator[str]:
    """Entries for people, below the names of their columns."""
    rows = [("entry", "time", "run", "round", "recipient", "made")]
    for entry in entries:
        made = entry.mechanism
        manner = f"{made.mode}, σ = {made.sigma:.4g}, q = {made.rate:.4g}, {made.batches} batches"
        where = str(entry.round) if entry.kind == "debit" else entry.kind
        rows.append(
            (str(entry.sequence), entry.time, entry.run[:8], where, entry.recipient, manner)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
