"""The journal's events in sentences for people, as `peerpoise run` says them: a state machine
without clock, files or network.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path

from node.config import RunConfig
from node.encoding import Json
from node.figures import Metric, headline_text
from peer.message import Peer

PULSE_S = 60.0
"""So long may rounds pass without a line: a run that measures nothing shows that it lives, too."""
GUARANTEED = "any coalition"
"""How the words begin that say against whom an ε holds; where they are others, none does."""


class Sentences:
    """One node's. `of` is given every event of its journal in order, and returns the sentence it
    is worth, or nothing.
    """

    def __init__(self, node: Peer, run: RunConfig, *, version: str, folder: Path) -> None:
        """`version`: of the software. `folder`: where the node keeps its model."""
        self.node, self.run, self.version, self.folder = node, run, version, folder
        self.rounds = run.train.rounds
        self._metrics: tuple[Metric, ...] = ()
        self._neighbors: frozenset[Peer] = frozenset()
        self._live: set[Peer] = set()
        self._away: set[Peer] = set()
        """Neighbors that were lost, and are not back."""
        self._overdue: set[Peer] = set()
        """Neighbors that a line said this node waits for."""
        self._measured: list[str] = []
        """What the next line of a round says of it."""
        self._first, self._from = 0, ""
        """The round it begins with, and where it goes on, if it does."""
        self._running = False
        self._last_round = 0.0
        """When a round had a line, in seconds."""

    def of(self, event: str, fields: Json, now: datetime) -> str:
        sentence = self._of_neighbor if "peer" in fields else self._of_run
        return sentence(event, fields, now)

    def _of_run(self, event: str, fields: Json, now: datetime) -> str:
        match event:
            case "listening":
                self._neighbors = frozenset(fields["neighbors"])
                return self._opening(fields["address"])
            case "warning":
                return f"warning: {fields['text']}"
            case "backend":
                return str(fields.get("slow") or "")
            case "figures":
                self._metrics = tuple(Metric(**each) for each in fields["metrics"])
            case "resume" if "checkpoint" in fields:
                self._resume(fields["round"], fields["checkpoint"])
            case "state":
                return self._state(fields["state"], fields.get("reason") or "", now.timestamp())
            case "test":
                self._measured.append(headline_text(self._metrics, fields["metrics"]))
            case "epsilon":
                self._measured.append(epsilon("ε_total", fields["total"], fields))
            case "round":
                return self._round(fields["round"], now.timestamp())
            case "budget":
                spent = epsilon("lifetime ε", fields["lifetime"], fields, fields["limit"])
                share = f"{fields['share']:.0%} of the privacy budget of these data"
                return f"{share} is spent: {spent}"
            case "roster":
                return f"version {fields['version']} of the roster is in force"
            case "certificate":
                return f"the renewed certificate is in force, until {fields['expires'][:10]}"
            case "end":
                return self._end(fields)
        return ""

    def _of_neighbor(self, event: str, fields: Json, now: datetime) -> str:
        peer, reason = fields["peer"], fields.get("reason") or ""
        match event:
            case "peer" if fields["state"] == "live":
                back, known = peer in self._away, peer in self._live
                self._live.add(peer)
                self._away.discard(peer)
                self._overdue.discard(peer)
                return "" if known else f"{peer} is back" if back else f"{peer} is there"
            case "peer" if peer in self._live:
                self._gone(peer)
                return f"{peer} is gone: {reason}" if reason else f"{peer} has done all its rounds"
            case "lost_edge" if peer in self._live:
                return f"round {fields['round'] + 1} goes on without {peer}: {reason}"
            case "waiting":
                self._overdue.add(peer)
                since, until = _clock(now, -fields["since_s"]), _clock(now, fields["until_s"])
                return (
                    f"waits for {peer} since {since}, until {until}: {reason}{self._perhaps_over}"
                )
            case "waited" if peer in self._overdue:
                self._overdue.discard(peer)
                return f"{peer} came, after {duration(fields['seconds'])}"
            case "rejected":
                return f"{peer} sent what can't be used ({fields['code']}); it is dropped"
        return ""

    def _opening(self, address: str) -> str:
        around = f" for {names(self._neighbors)}" if self._neighbors else ""
        run = self.run
        return (
            f"{self.node} listens at {address}{around}: run {run.run.name} ({run.run_id[:8]}), "
            f"{run.algorithm.name}, privacy mode {run.privacy.mode}, peerpoise {self.version}"
            f"{self._from}"
        )

    def _gone(self, peer: Peer) -> None:
        self._live.discard(peer)
        self._overdue.discard(peer)
        self._away.add(peer)

    def _resume(self, t: int, checkpoint: int) -> None:
        at = f"from the checkpoint of round {checkpoint + 1}"
        kept = (
            at if checkpoint >= 0 else "without a checkpoint, so from the model that all began with"
        )
        self._first, self._from = t, f"; goes on at round {t + 1}, {kept}"

    @property
    def _perhaps_over(self) -> str:
        """Who comes back late may wait for neighbors that have gone home."""
        if not self._first or self._running:
            return ""
        return " If it has done all its rounds, stop this node, and take a neighbor's model."

    def _state(self, state: str, reason: str, now: float) -> str:
        match state:
            case "running":
                self._last_round, self._running = now, True
                missing = self._neighbors - self._live
                without = f", without {names(missing)}" if missing else ""
                around = f" with {names(self._live)}" if self._live else ""
                return f"starts round {self._first + 1} of {self.rounds}{around}{without}"
            case "lingering" if self._live:
                return (
                    f"all rounds are done; {names(self._live)} may need this node a little longer"
                )
            case "stopping" if reason.startswith("SIG"):  # or the error's own sentence follows
                return f"stops: {reason}"
        return ""

    def _round(self, t: int, now: float) -> str:
        measured = ", ".join(filter(None, self._measured))
        self._measured.clear()
        if not measured and now - self._last_round < PULSE_S:
            return ""
        self._last_round = now
        return f"round {t + 1} of {self.rounds}" + (f": {measured}" if measured else "")

    def _end(self, fields: Json) -> str:
        if fields["reason"] == "stopped":
            return "stopped; type the same command to go on"
        if fields["reason"] != "finished":
            return ""  # the error's own sentence follows
        parts = [headline_text(self._metrics, fields.get("metrics") or {})]
        if fields.get("epsilon"):
            parts.append(epsilon("ε_total", fields["epsilon"]["total"], fields["epsilon"]))
            parts.append(fields["epsilon"].get("unused", ""))
        folder = shlex.quote(str(self.folder))
        figures = ", ".join(filter(None, parts))
        lacking = "" if fields["complete"] else " (not all of them were run)"
        return (
            f"finished {self.rounds} rounds{lacking} after {duration(fields['wall_seconds'])}"
            f"{': ' if figures else ''}{figures}; summary and model are in {folder}; next: "
            f"peerpoise export {folder} --out model.safetensors"
        )


def epsilon(
    name: str, value: float | None, conditions: Mapping[str, object], limit: float | None = None
) -> str:
    """An ε with the conditions under which it holds, which are in the fields of its event."""
    mode, against = conditions["mode"], str(conditions["against"])
    if value is None or not isfinite(value) or not against.startswith(GUARANTEED):
        return f"no ε (mode {mode}, against {against})"
    number = f"{value:.3g}" if limit is None else f"{value:.3g} of {limit:g}"
    delta, accountant = conditions["delta"], conditions["accountant"]
    return (
        f"{name} {number} ({mode}, {conditions['adjacency']}, δ = {delta:g}, {accountant}, "
        f"against {against})"
    )


def names(peers: Iterable[Peer]) -> str:
    """In order, the last one after "and"."""
    *others, last = sorted(peers)
    return f"{', '.join(others)} and {last}" if others else last


def duration(seconds: float) -> str:
    """In the two largest units, e.g. 12 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    for unit, part, large, small in ((3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def _clock(now: datetime, seconds: float) -> str:
    """The time of day so many seconds from now, with the date if it is another day."""
    then = now + timedelta(seconds=seconds)
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M:%S")
