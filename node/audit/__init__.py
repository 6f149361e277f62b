"""Attacks on a run's own promise, made on this machine and held against its ε: one function each,
and one line in the table. `peerpoise audit` runs them.

An audit takes a resolved run and `Options`, says now and then what it does, and returns `Finding`s.
It finds what the attack found: that a promise holds is never proved by one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from node.encoding import Json
from node.experiments.report.tables import Grid
from node.experiments.resolve import ResolvedRun
from node.hooks import no_op
from node.learning.plan import Plan
from peer.errors import ConfigurationError
from peer.message import Peer
from peer.tables import load_entry

AUDITS: Mapping[str, str] = {
    "canaries": "node.audit.canaries:audit",
    "inversion": "node.audit.images:audit",
    "knowledge": "node.audit.knowledge:audit",
    "membership": "node.audit.members:audit",
}
"""name -> module:function. A new audit: one function, one line here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an audit is made."""

    curious: tuple[Peer, ...] = ()
    """Nodes that put together what they know; none: each audit chooses its own."""
    canaries: int = 10_000
    """Records of a known gradient, each of them in the data or not."""
    rounds: int | None = None
    """Rounds that are attacked; None: those of the run, as far as there is room."""
    seed: int = 0
    """Of what an attacker draws; noise and batches are drawn as in a run."""
    quick: bool = False
    """Fewer repetitions: seconds, and weaker."""
    say: Callable[[str], None] = no_op
    """Hears what is being attacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image on the page."""

    title: str
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one attack found."""

    table: Grid
    """For people."""
    document: Json
    """The same for programs."""
    broken: tuple[str, ...] = ()
    """Sentences: why the run does not keep what it promises; none: this attack saw nothing of
    it."""
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    made: bool = True
    """False: this attack can't be made of this run; `table` says why."""


class Unfit(ConfigurationError):
    """This audit can't be made of this run; one sentence."""


Audit: TypeAlias = Callable[[ResolvedRun, Options], Sequence[Finding]]


Findings: TypeAlias = Mapping[str, Sequence[Finding]]
"""Name of the audit -> what it found."""


def run(resolved: ResolvedRun, only: Sequence[str], options: Options) -> Findings:
    """Makes these audits, or all that fit the run.

    Raises:
        ConfigurationError: there is none of that name; one that is asked for does not fit; a
            curious node is none of the run's; or nobody is sent anything.
    """
    _check_talk(resolved.plan)
    check_names(resolved.plan, options.curious)
    torch.set_num_threads(1)
    findings: dict[str, Sequence[Finding]] = {}
    for name in only or AUDITS:
        audit = find(name)
        try:
            findings[name] = audit(resolved, options)
        except Unfit as error:
            if only:
                raise
            table = Grid(title="Not made", head=("audit", "why"), rows=((name, str(error)),))
            findings[name] = [Finding(table=table, document={"unfit": str(error)}, made=False)]
    return findings


def _check_talk(plan: Plan) -> None:
    """Raises ConfigurationError: nobody is sent anything."""
    if plan.algorithm.SILENT:
        raise ConfigurationError(
            f"{plan.run.algorithm.name} sends nothing to anybody, so there is nothing to attack; "
            "audit an algorithm whose nodes talk to each other."
        )


def check_names(plan: Plan, nodes: Sequence[Peer]) -> None:
    """Raises ConfigurationError: one of them is none of the run's."""
    known = plan.neighborhoods
    if unknown := sorted(set(nodes) - known.keys()):
        raise ConfigurationError(
            f"{unknown[0]} is no node of this run; they are {', '.join(sorted(known))}."
        )


def find(name: str) -> Audit:
    """The audit of this name.

    Raises:
        ConfigurationError: there is none.
    """
    audit: Audit = load_entry(AUDITS, name, "audit")
    return audit


__all__ = [
    "AUDITS",
    "Audit",
    "Finding",
    "Findings",
    "Options",
    "Picture",
    "Unfit",
    "check_names",
    "find",
    "run",
]
