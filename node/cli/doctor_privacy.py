"""What `doctor --config` says of a node's privacy: what run and data promise, and whether the data
are known under another name. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from node.cli.doctor import Finding, fault, ok, warning
from node.config import BudgetSection, NodeConfig
from node.learning.known_data import KnownData
from node.learning.plan import Plan
from node.learning.warnings import NO_PRIVACY, PAPER_WARNING, hopeless, loose_delta, weak
from node.privacy.accountant import Mechanism, remaining_compositions
from node.privacy.calibration import release_mechanism
from node.privacy.known_rows import KnownRows
from node.privacy.ledger import Ledger
from node.task import Task
from peer.errors import PeerpoiseError

WRITER = "ask who writes run.toml for another, or leave this run"


def of_run(plan: Plan, budget: BudgetSection) -> Iterator[Finding]:
    """What follows from run.toml and the budget alone."""
    privacy = plan.run.privacy
    without = {"paper": PAPER_WARNING, "none": NO_PRIVACY}.get(privacy.mode)
    for text in filter(None, (without, weak(plan.epsilon))):
        yield warning("privacy", text, "ask who writes run.toml for more noise, or leave this run")
    if privacy.mode != "none" and not budget.experiment and privacy.delta != budget.delta:
        text = f"ε of the run is at δ = {privacy.delta:g}, that of its data at {budget.delta:g}"
        do = "compare neither; budget.delta is yours: at a larger one earlier runs count for less"
        yield warning("privacy", text, do)


def of_data(plan: Plan, node: NodeConfig, task: Task, n: int) -> Iterator[Finding]:
    """What follows from these data, of n privacy units; their number is told to their own host
    only.
    """
    privacy, d = plan.run.privacy, task.layout.size
    sigma = plan.sigma(d) if privacy.mode == "strict" else 0.0
    if sigma:
        loose = loose_delta(privacy.delta, n, plan.run.task.unit)
        noise = hopeless(privacy, sigma=sigma, d=d, examples=n)
        for text in filter(None, (loose, noise)):
            yield warning("privacy", text, WRITER)
    if node.budget.experiment or plan.run.task.data != "own":
        return
    if privacy.mode != "none" and (loose := loose_delta(node.budget.delta, n, plan.run.task.unit)):
        yield warning("budget", loose, "set budget.delta in node.toml to what earlier runs had")
    try:
        yield from _known(plan, node, task)
        if sigma:
            neighborhood = plan.neighborhoods.get(node.name)
            releases = plan.algorithm.releases(neighborhood.degree if neighborhood else 0)
            unit = plan.run.task.unit
            mechanism = release_mechanism(privacy, d=d, sigma=sigma, releases=releases, unit=unit)
            yield from _left(plan, node, mechanism)
    except PeerpoiseError as error:
        yield fault("budget", str(error), "see peerpoise budget, and peerpoise show backup")


def _known(plan: Plan, node: NodeConfig, task: Task) -> Iterator[Finding]:
    """Are the rows known under another name? And whose rows are not known at all?"""
    KnownData(run=plan.run, data=node.data, budget=node.budget).check(task)
    known = KnownRows(node.budget.folder).names()
    for name in Ledger.names(node.budget.folder):
        if name not in (*known, node.data.name) and _spent(node.budget.folder, name):
            text = f"the ledger {name} does not know its rows: they were not kept when it spent"
            yield warning("rows", text, "nothing, if these are other data; its next run notes them")
    yield ok("rows", f"these rows are not known under another name than {node.data.name}")


def _spent(folder: Path, name: str) -> bool:
    """Also where it can't be read."""
    try:
        with closing(Ledger.look(folder, name)) as ledger:
            return bool(ledger.head[0])
    except PeerpoiseError:
        return True


def _left(plan: Plan, node: NodeConfig, mechanism: Mechanism) -> Iterator[Finding]:
    """Can a run that has not begun release anything?"""
    limit, rounds = node.budget.limit, plan.run.train.rounds
    if limit is None:
        return
    with closing(Ledger.look(node.budget.folder, node.data.name)) as ledger:
        rows, begun = ledger.rows(), bool(ledger.rows(plan.run.run_id))
    most = mechanism.compositions(rounds)
    left = remaining_compositions(rows, mechanism, limit, node.budget.delta, most=most)
    if begun or not most:
        return
    if not left:
        yield fault(
            "budget",
            "budget.epsilon leaves no release to this run",
            "see peerpoise budget; raise budget.epsilon only if the data's owner agrees",
        )
    elif left < most:
        share = f"{left / most:.0%} of this run's releases"
        text = f"budget.epsilon is spent after {share}; mixing goes on"
        yield warning("budget", text, "see peerpoise plan NODE.toml")
