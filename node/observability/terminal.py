"""What people see: live progress of a local cluster, the histogram of a partition, `status`.

Everything goes to one console: standard output, or standard error where standard output carries
JSON. Where that is no terminal, a line is printed per tenth of the run instead of a live table.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node.observability import status as sockets
from node.observability.output import UNBOUNDED, print_json, screen
from node.observability.status import Status
from peer.errors import PeerpoiseError, TemporaryFailure

WATCH_S = 1.0
"""Seconds between two looks of `status --watch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One node at one moment, as `up` shows it."""

    round: int = 0
    """Rounds that are finished."""
    tested: str = ""
    """The headline metric as it was measured last, e.g. accuracy 83.1%."""
    epsilon: float | None = None
    state: str = "starting"
    """Phase and whom it waits for, or how it ended."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))  # rich would end the program


class Screen:
    """Live progress of all nodes; a context manager. Once it can't be written, nothing more is
    shown: `fault` says why."""

    def __init__(self, rounds: int, *, quiet: bool, adjacency: str) -> None:
        self.console = _Console(stderr=quiet, highlight=False)
        if not self.console.is_terminal:
            self.console.width = UNBOUNDED
        self.fault: OSError | None = None
        self._rounds, self._adjacency = rounds, adjacency
        self._live = Live(console=self.console, auto_refresh=False, transient=False)
        self._tenth = -1

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._write(self._live.start)
        return self

    def __exit__(self, *error: object) -> None:
        self._write(self._live.stop)

    def say(self, text: str) -> None:
        self._write(lambda: self.console.print(Text(text), soft_wrap=True))

    def print(self, table: Table) -> None:
        self._write(lambda: self.console.print(table))

    def _write(self, write: Callable[[], None]) -> None:
        if self.fault:
            return
        try:
            write()
        except OSError as error:
            self.fault = error

    def show(self, nodes: Mapping[str, Progress]) -> None:
        if self.console.is_terminal:
            table = _table(nodes, self._rounds, self._adjacency)
            self._write(lambda: self._live.update(table, refresh=True))
            return
        tenth = 10 * min(node.round for node in nodes.values()) // self._rounds
        if tenth > self._tenth:
            self._tenth = tenth
            self.say("  ".join(_brief(name, node, self._rounds) for name, node in nodes.items()))


def _brief(name: str, node: Progress, rounds: int) -> str:
    return f"{name} {node.round}/{rounds} {node.tested}".rstrip() + (
        "" if node.round else f" {node.state}"
    )


def _table(nodes: Mapping[str, Progress], rounds: int, adjacency: str) -> Table:
    table = Table(
        "node", "round", "", "test", "ε_total so far*", "what it does", box=None, pad_edge=False
    )
    for name, node in nodes.items():
        done = round(20 * node.round / rounds)
        table.add_row(
            name,
            f"{node.round}/{rounds}",
            Text("━" * done, "green") + Text("━" * (20 - done), "dim"),
            node.tested,
            "" if node.epsilon is None else f"{node.epsilon:.2f}",
            Text(node.state),
        )
    table.caption = (
        f"* {adjacency}, δ as in run.toml, RDP; against any coalition in mode strict, else void"
    )
    table.caption_justify = "left"
    return table


def histogram(screen: Screen, counts: Mapping[str, Sequence[int]]) -> None:
    """Examples per node and class, of public data."""
    classes = range(len(next(iter(counts.values()))))
    table = Table("examples", *map(str, classes), "all", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in counts.items():
        table.add_row(name, *(str(n) if n else "·" for n in row), str(sum(row)))
    screen.print(table)


def doing(places: Sequence[Path]) -> str | None:
    """In a few words what a daemon does and whom it waits for; None while it does not answer at any
    of the places.
    """
    socket = next((path for path in places if path.exists()), places[0])
    try:
        answer = sockets.query(socket, timeout=0.5)
    except TemporaryFailure:
        return None
    waits = ", ".join(f"{each['peer']} ({each['since_s']:.1f} s)" for each in answer["waiting_for"])
    what = (
        answer["phase"]["kind"]
        if answer["phase"] and answer["state"] == "running"
        else answer["state"]
    )
    return f"{what}, waits for {waits}" if waits else what


def status(name: str | None, *, watch: bool, as_json: bool) -> None:
    """Prints what the daemons of this user do, once or until interrupted (JSON: a list a line).
    `name`: of that node, or, with a slash in it, of those that answer in that folder.

    Raises:
        PeerpoiseError: none is running, or none of that name.
    """
    if as_json:
        for statuses in _looks(name, watch):
            print_json(statuses, indent=None if watch else 2)
    elif not watch:
        screen().print(_render(next(_looks(name, watch))))
    else:
        with Live(auto_refresh=False, screen=False) as live:
            for statuses in _looks(name, watch):
                live.update(_render(statuses), refresh=True)


def _looks(name: str | None, watch: bool) -> Iterator[list[Status]]:
    while True:
        statuses = _running(name)
        if not statuses:
            raise PeerpoiseError(
                f"No daemon {name} of this user is running." if name else "No daemon is running."
            )
        yield statuses
        if not watch:
            return
        time.sleep(WATCH_S)


def _running(name: str | None) -> list[Status]:
    statuses = []
    folder = Path(name) if name and os.sep in name else None
    for socket in sockets.find(folder):
        try:
            statuses.append(sockets.query(socket))
        except TemporaryFailure:
            continue  # it ended between the two
    return [each for each in statuses if folder or name in (None, each["node"])]


def _render(statuses: Sequence[Status]) -> Group:
    return Group(*(part for each in statuses for part in (sockets.render(each), Text())))
