"""The command `peerpoise ledger`: what the owner of the data does with their ledger."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import Json
from node.observability.output import print_json

if TYPE_CHECKING:
    from node.config import NodeConfig, RunConfig
    from node.privacy.accountant import Mechanism

app = typer.Typer(help="The privacy ledger of a node's data.", no_args_is_help=True)


@app.command("count-lost")
def count_lost(
    file: Annotated[
        Path, typer.Option("--config", metavar="NODE.toml", help="The node's own file.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; otherwise only show what it would come to.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count all that this node's run may release as spent, for good.

    The way on where the ledger was set back to an older copy, so that nobody knows which debits are
    lost: docs/backup.md. Stop the daemon before.
    """
    counted = count(file, yes=yes)
    if as_json:
        print_json(counted)
        return
    typer.echo(
        f"{counted['data']}: run {counted['run']} counts {counted['compositions']} compositions; "
        f"lifetime ε {counted['before']:.4g} -> {counted['after']:.4g} at δ {counted['delta']:g}"
    )
    if counted["missing"]:
        typer.echo(f"{counted['missing']} debits are missing yet: count the runs that made them.")
    if not yes:
        typer.echo("Nothing was written; add --yes to count it.")


@app.command("rename")
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Its name now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The one it is to have.")],
    file: Annotated[
        Path | None,
        typer.Option("--config", metavar="NODE.toml", help="Whose ledgers; else this user's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a ledger another name, for good: what was spent goes with it.

    Stop the daemon before, and write the new name as data.name into the node's file after it. If it
    is interrupted, do it again: until then nothing is released under either name.
    """
    from node.config import BudgetSection, NodeConfig, load
    from node.daemon.bootstrap import resolve_paths
    from node.privacy import rename as renaming

    budget = BudgetSection()
    if file is not None:
        budget = resolve_paths(load(NodeConfig, [file]), file.parent).budget
    renaming.rename(budget.folder, old, new)
    if as_json:
        print_json({"ledger": new, "was": old, "folder": str(budget.folder)})
    else:
        typer.echo(f'{old} is {new} now; write data.name = "{new}" into the node\'s file.')


def count(file: Path, *, yes: bool) -> dict[str, object]:
    """What `count-lost` does and says.

    Raises:
        PeerpoiseError: a file, the task or the ledger can't be used; nothing was counted.
    """
    from node.config import NodeConfig, RunConfig, load
    from node.daemon.bootstrap import resolve_paths
    from node.privacy.accountant import Spent, epsilon_pld
    from node.privacy.ledger import Ledger

    node = resolve_paths(load(NodeConfig, [file]), file.parent)
    run = load(RunConfig, [node.run], environ={})
    mechanism = _mechanism(node, run)
    most = max(1, mechanism.compositions(run.train.rounds))
    delta, name = node.budget.delta, node.data.name or "experiment"
    with Ledger.open(node.budget.folder, name, set_back=True) as ledger:
        rows, missing = ledger.rows(), ledger.missing
        if yes:
            missing = ledger.count_lost(run.run_id, mechanism, most)
    after = epsilon_pld([*rows, Spent(mechanism, most)], delta)
    if yes:
        _note(node, run, compositions=most, lifetime=after)
    return {
        "data": name,
        "run": run.run_id,
        "compositions": most,
        "before": epsilon_pld(rows, delta),
        "after": after,
        "delta": delta,
        "missing": missing,
        "counted": yes,
    }


def _mechanism(node: NodeConfig, run: RunConfig) -> Mechanism:
    """How this node's releases are accounted for."""
    from node.learning.plan import Plan
    from node.privacy.accountant import Mechanism
    from node.privacy.calibration import release_mechanism
    from node.tasks import make
    from peer.identity.roster import Roster

    if run.privacy.insecure_seed is not None:  # anybody who knows the seed can remove the noise
        return Mechanism(sigma=0.0, rate=1.0, mode="none")
    node.check_task(run.task)
    names = Roster.load(node.roster, run.run.federation).names
    plan = Plan.of(run, run.neighborhoods(names))
    d = make(run, node.data).layout.size
    releases = plan.algorithm.releases(plan.neighborhoods[node.name].degree)
    sigma, unit = plan.sigma(d), run.task.unit
    return release_mechanism(run.privacy, d=d, sigma=sigma, releases=releases, unit=unit)


def _note(node: NodeConfig, run: RunConfig, *, compositions: int, lifetime: float) -> None:
    """Writes it into the node's journal."""
    from node.daemon.startup import journal_header
    from node.records.journal import Journal
    from peer.files import ensure_dir

    file = ensure_dir(node.folder) / "journal.jsonl"
    with closing(Journal(file, journal_header(node, run))) as journal:
        journal.write(
            "counted",
            run=run.run_id,
            compositions=compositions,
            lifetime=lifetime,
            lifetime_delta=node.budget.delta,
        )
