"""What `doctor` says of the privacy unit: whom ε protects, and whether that is meant."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, redirect_stderr, suppress
from pathlib import Path

from node import data
from node.cli.doctor import Finding, ok, warning
from node.config import NodeConfig, RunConfig, TaskSection
from node.config.task import adjacency
from node.data import columns
from node.data.units import likely
from node.privacy.accountant import OTHER_UNIT, units
from node.privacy.ledger import Ledger
from peer.errors import PeerpoiseError


def examine_unit(node: NodeConfig, run: RunConfig) -> Iterator[Finding]:
    """Whom ε protects; a doubt where a column looks as if others should be, or the ledger has
    protected others.
    """
    task = run.task
    if run.privacy.mode == "none":
        return
    if task.unit:
        most = f"at most {task.rows_per_unit} of its rows in a batch"
        yield ok("privacy unit", f"{task.adjacency}; {most}")
    elif names := _likely(node.data.path, task) if node.data.path and task.data == "own" else []:
        yield warning(
            "privacy unit",
            f"several rows have the same {names[0]}, but ε protects single rows ({adjacency('')})",
            f'task.unit = "{names[0]}" in run.toml, if that is one person; the same at all nodes',
        )
    if _has_protected_others(node, task.unit):
        yield warning("privacy unit", OTHER_UNIT, "task.unit as in the earlier runs")


def _likely(path: Path, task: TaskSection) -> list[str]:
    """Columns of the data that seem to say whose a row is, and say so of several rows."""
    with suppress(PeerpoiseError), redirect_stderr(io.StringIO()):
        every = _columns(path, task)
        return [name for name, cells in every.items() if name != task.label and likely(name, cells)]
    return []


def _columns(path: Path, task: TaskSection) -> Mapping[str, Iterable[object]]:
    if task.text is not None:
        return data.read_texts(path, task).columns
    if task.features:
        return columns.read(path, (task.label,), ragged=True)
    return data.own(path, task).columns if path.suffix.lower() == ".npz" else {}


def _has_protected_others(node: NodeConfig, unit: str) -> bool:
    name = node.data.name or "experiment"
    with suppress(PeerpoiseError):
        folder = node.budget.folder
        with closing(Ledger.look(folder, name)) as ledger:
            return not units(ledger.rows()) <= {unit}
    return False
