"""The command `peerpoise ledger`: what the owner of the data does with their ledger."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import Json
from node.observability.output import print_json
from peer.errors import ConfigurationError, LedgerError

if TYPE_CHECKING:
    from node.config import NodeConfig, RunConfig
    from node.privacy.accountant import Mechanism

app = typer.Typer(help="The privacy ledger of a node's data.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="[NAME]", help="The data's name; all ledgers, if left out.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="NODE.toml", help="Whose ledgers; else this user's."),
]


@app.command("show")
def show(
    name: Name = "",
    file: Config = None,
    last: Annotated[int, typer.Option(min=0, help="So many entries, the last ones.")] = 10,
    as_json: Json = False,
) -> None:
    """Show what a ledger holds: its head, and its last entries.

    What they come to, run by run: peerpoise budget. Daemons may run meanwhile.
    """
    from node.cli import ledger_entries
    from node.privacy.ledger import Ledger

    budget, names = ledger_entries.folder_and_names(file, name)
    documents = []
    for each in names:
        with closing(Ledger.look(budget.folder, each)) as ledger:
            sequence, digest = ledger.head
            entries = ledger.entries()[max(0, sequence - last) :]
        if as_json:
            documents.append(
                {
                    "ledger": each,
                    "folder": str(budget.folder),
                    "first_name": ledger.first_name,
                    "entries": sequence,
                    "head": digest.hex(),
                    "last": ledger_entries.records(entries),
                }
            )
            continue
        typer.echo(f"{each}, in {budget.folder}: {sequence} entries, head {digest.hex()[:16]}")
        for line in ledger_entries.lines(entries) if entries else ():
            typer.echo(line)
    if as_json:
        print_json(documents)


@app.command("verify")
def verify(name: Name = "", file: Config = None, as_json: Json = False) -> None:
    """Read all of a ledger and say whether it can vouch for what was spent.

    Exit code 73 if one can't. Whether all files of a ledger were set back together, only the
    neighbors can tell. Daemons may run meanwhile.
    """
    from dataclasses import asdict

    from node.cli import ledger_entries

    budget, names = ledger_entries.folder_and_names(file, name)
    verdicts = [ledger_entries.verify(budget.folder, each) for each in names]
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    for verdict in [] if as_json else verdicts:
        typer.echo(verdict.sentence, err=not verdict.whole)
    if not all(verdict.whole for verdict in verdicts):
        raise typer.Exit(LedgerError.exit_code)


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The data's name.")] = "",
    file: Config = None,
    epsilon: Annotated[
        bool, typer.Option("--epsilon", help="ε after each round, instead of the entries.")
    ] = False,
    delta: Annotated[float | None, typer.Option(help="δ, instead of the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Print all entries of a ledger, or ε round by round, as CSV.

    ε is that of each mechanism, of each run, and of the life of the data, by Rényi divergence, as
    in status: 8 to 25 % above the figures of peerpoise budget. Daemons may run meanwhile.
    """
    from node.cli import ledger_entries
    from node.privacy.ledger import Ledger
    from node.records.journal import plain

    budget, names = ledger_entries.folder_and_names(file, name)
    if len(names) > 1:
        raise ConfigurationError(f"Name one of the ledgers in {budget.folder}: {', '.join(names)}.")
    delta = budget.delta if delta is None else delta
    if not 0 < delta < 1:
        raise ConfigurationError(f"--delta {delta:g} is no δ; it lies between 0 and 1.")
    with closing(Ledger.look(budget.folder, names[0])) as ledger:
        entries = ledger.entries()
    if epsilon:
        columns = ledger_entries.ROUND_COLUMNS
        records = ledger_entries.epsilon_by_round(entries, delta)
    else:
        columns, records = ledger_entries.COLUMNS, ledger_entries.records(entries)
    if as_json:
        print_json(plain(records))
        return
    for line in ledger_entries.csv_lines(records, columns):
        typer.echo(line)


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
    file: Config = None,
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
