"""`peerpoise plan`: what a run will cost in privacy before it is started, and what it would cost on
other graphs.

Every figure comes from the functions that the run itself uses: σ by `gate.noise_multiplier`, ε by
PLD. σ is the nominal multiplier (`privacy.sigma`), rounded up to four digits; where the number of
parameters is unknown (own data) the grid of the noise is left out of it, which is less than one
part in a thousand below a million parameters and σ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from node.algorithms import find
from node.audit import Finding, knowledge
from node.cli.budget import Account, account
from node.cli.proposals import Limits, Proposal, propose
from node.config import (
    BudgetSection,
    ExperimentConfig,
    NodeConfig,
    RunConfig,
    detect_config,
    divide,
    load,
)
from node.daemon.bootstrap import resolve_paths
from node.encoding import Json
from node.experiments.resolve import members
from node.learning.plan import Plan
from node.learning.warnings import hopeless, loose_delta, warning, weak
from node.maths.graph import spectral_gap
from node.privacy.accountant import (
    Mechanism,
    epsilon_link,
    epsilon_total,
    remaining_compositions,
    units,
)
from node.privacy.calibration import noise_multiplier, release_mechanism
from node.privacy.ledger import Ledger
from node.privacy.membership import FPR, Membership, membership
from node.records.summary import Epsilon, Privacy
from node.tasks import make
from peer.errors import ConfigurationError
from peer.neighborhood import Neighborhood
from peer.topology import TOPOLOGIES, make_neighborhoods


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Privacy cost on one graph, for a node of maximum degree."""

    graph: str
    """Empty: only the degree was given."""
    degree: int
    releases: int
    """|K|: gradients it releases a round, its own included."""
    sigma: float
    epsilon: float
    """ε_total."""
    spectral_gap: float | None = None
    """1 − |λ₂| of its W: how fast models come together; None: only the degree was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime(Account):
    """What a ledger says of its data, and what the planned run does to that."""

    planned: float
    """ε_total of the planned run at the ledger's δ, which may be another one than the run's."""
    other_unit: bool
    """Some of what was spent protects another unit than the planned run, so no ε holds for all."""
    rounds_left: int | None
    """Rounds of the planned run that the limit still allows, at most all of them; None: there is no
    limit.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What `plan` answers."""

    algorithm: str
    nodes: int
    rounds: int
    rate: float
    parameters: int | None
    target: float | None
    """ε_total that was asked for; None: σ was given, or there is nothing to protect."""
    silent: str
    """Why nothing is released to other nodes, in a sentence; empty: something is."""
    privacy: Privacy
    """Conditions of every ε here, with σ, ε_total and ε_link of `cost`."""
    membership: Membership
    """What that means: how well a known record can be told to be there."""
    cost: Cost
    graphs: tuple[Cost, ...]
    """The same on every graph of the table, cheapest first."""
    impossible: dict[str, str]
    """Graph -> why it can't be had with so many nodes."""
    doubts: tuple[str, ...]
    """Why these figures promise little, or why nothing would be learned; n is public, B/q or
    privacy.max_examples."""
    lifetime: Lifetime | None
    proposals: tuple[Proposal, ...]
    """Other q, T and K, if they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question: a run, its nodes, and the ledger it will be written to."""

    run: RunConfig
    names: Sequence[str]
    degree: int | None = None
    """Instead of a graph."""
    data: str = ""
    limits: Limits | None = None
    """Of proposals; None: none are wanted."""
    budget: BudgetSection = field(default_factory=lambda: BudgetSection(epsilon="unlimited"))


PUBLIC = (
    "{} learns from the public validation set alone, and no private example: it takes no noise, "
    "and its ε is 0 whatever privacy.epsilon or privacy.sigma say."
)
SILENT = (
    "{} sends nothing to any other node, so what others learn is nothing, on every graph. Its ε is "
    "what its model tells of the data, where that is passed on."
)
TARGETS = ("privacy.epsilon=", "privacy.sigma=")


def read(file: Path | None, settings: Sequence[str]) -> Question:
    """From an experiment, a run.toml (with its roster.json beside it), a node.toml (with all it
    names), or nothing. Of a node.toml `settings` may set keys of either file.

    Raises:
        ConfigurationError, IdentityError: one sentence.
    """
    if file is None:
        if not any(setting.startswith(TARGETS) for setting in settings):
            raise ConfigurationError("Name a FILE, or a target by --epsilon or --sigma.")
        config = load(ExperimentConfig, [], ["task.data=own", "privacy.mode=strict", *settings])
        return Question(run=config, names=config.experiment.names)
    if detect_config(file) is ExperimentConfig:
        config = load(ExperimentConfig, [file], settings)
        return Question(run=config, names=members(config, file.parent / "roster.json"))
    of_node, of_run = divide(settings)
    node = resolve_paths(load(NodeConfig, [file], of_node), file.parent)
    config = load(ExperimentConfig, [node.run], of_run)
    node.check_task(config.task)
    return Question(
        run=config, names=members(config, node.roster), data=node.data.name, budget=node.budget
    )


def with_options(
    question: Question,
    *,
    degree: int | None,
    data: str,
    limit: float | None,
    limits: Limits | None = None,
) -> Question:
    """What the command line says beside the settings of a file."""
    budget = question.budget
    if limit is not None:
        budget = budget.model_copy(update={"epsilon": limit})
    return replace(
        question, degree=degree, data=data or question.data, budget=budget, limits=limits
    )


def answer(question: Question, say: Callable[[str], None] = lambda text: None) -> PrivacyPlan:
    """Calibrates or accounts, once per |K|; `say` hears what is being computed. Some CPU seconds.

    Raises:
        ConfigurationError: not mode strict, an unknown algorithm or graph, or no noise reaches the
            target.
        LedgerError: of the ledger.
    """
    run, privacy = question.run, question.run.privacy
    if find(run.algorithm.name).PUBLIC:
        return _without_private_data(question)
    if not find(run.algorithm.name).PRIVATE:
        raise ConfigurationError(
            f"{run.algorithm.name} has no differential privacy in any mode, so there is no ε to "
            "plan."
        )
    if privacy.mode != "strict":
        raise ConfigurationError(
            f'privacy.mode = "{privacy.mode}" has no ε to plan; see --set privacy.mode=strict.'
        )
    algorithm, rounds, d = find(run.algorithm.name), run.train.rounds, _parameters(run)
    unit = run.task.unit

    @cache
    def price(releases: int) -> tuple[float, float]:
        say(f"accounting for {releases} releases a round")
        sigma = privacy.sigma or _up(
            noise_multiplier(privacy, d=d or 0, rounds=rounds, releases=releases)
        )
        return sigma, epsilon_total(
            release_mechanism(privacy, d=d or 0, sigma=sigma, releases=releases, unit=unit),
            rounds,
            privacy.delta,
        )

    def cost(degree: int, **graph: Any) -> Cost:
        sigma, spent = price(releases := algorithm.releases(degree))
        return Cost(degree=degree, releases=releases, sigma=sigma, epsilon=spent, **graph)

    graphs, impossible = ([], {}) if algorithm.SILENT else _graphs(run, question.names)
    if algorithm.SILENT:
        own = cost(0, graph="")
    elif question.degree is not None:
        own = cost(question.degree, graph="")
    else:
        own = cost(**_facts(run.topology.kind, run.neighborhoods(question.names)))
    mechanism = release_mechanism(
        privacy, d=d or 0, sigma=own.sigma, releases=own.releases, unit=unit
    )
    link = 0.0 if algorithm.SILENT else epsilon_link(mechanism, rounds, privacy.delta)
    known = membership(mechanism, rounds)
    if algorithm.SILENT:
        known = replace(known, link=known.fpr)
    return PrivacyPlan(
        algorithm=run.algorithm.name,
        nodes=len(question.names),
        rounds=rounds,
        rate=privacy.rate,
        parameters=d,
        target=privacy.epsilon,
        silent=SILENT.format(run.algorithm.name) if algorithm.SILENT else "",
        privacy=Privacy(
            mode="strict",
            batches=privacy.batches,
            adjacency=run.task.adjacency,
            unit=unit,
            delta=privacy.delta,
            sigma=own.sigma,
            accountant="PLD",
            epsilon=Epsilon(total=own.epsilon, link=link),
            public_validation=run.validation.public,
            insecure_seed=privacy.insecure_seed is not None,
            warning=warning(privacy, run.train, own.epsilon),
        ),
        membership=known,
        cost=own,
        graphs=tuple(
            sorted((cost(**graph) for graph in graphs), key=attrgetter("releases", "graph"))
        ),
        impossible=impossible,
        doubts=tuple(_doubts(run, own, d)),
        lifetime=_lifetime(question, mechanism) if question.data else None,
        proposals=_proposals(question, d, say),
    )


def _without_private_data(question: Question) -> PrivacyPlan:
    """Of an algorithm whose data are public."""
    run = question.run
    free = Cost(graph="", degree=0, releases=0, sigma=0.0, epsilon=0.0)
    return PrivacyPlan(
        algorithm=run.algorithm.name,
        nodes=len(question.names),
        rounds=run.train.rounds,
        rate=run.privacy.rate,
        parameters=_parameters(run),
        target=None,
        silent=PUBLIC.format(run.algorithm.name),
        privacy=Privacy(
            mode="none",
            adjacency=run.task.adjacency,
            unit=run.task.unit,
            sigma=0.0,
            epsilon=Epsilon(total=0.0, link=0.0),
            public_validation=run.validation.public,
        ),
        membership=Membership(fpr=FPR, total=FPR, link=FPR),
        cost=free,
        graphs=(),
        impossible={},
        doubts=(),
        lifetime=None,
        proposals=(),
    )


def _proposals(
    question: Question, d: int | None, say: Callable[[str], None]
) -> tuple[Proposal, ...]:
    if question.limits is None:
        return ()
    run = question.run
    return propose(run, Plan.of(run, run.neighborhoods(question.names)), d, question.limits, say)


def known(question: Question, curious: Sequence[str]) -> Finding:
    """What these nodes could reconstruct of the others' updates if there were no noise.

    Raises:
        ConfigurationError: one of them is none of the run's, or the algorithm's messages are no
            weighted sums of updates.
    """
    neighborhoods = question.run.neighborhoods(question.names)
    return knowledge.finding(Plan.of(question.run, neighborhoods), curious)


def _doubts(run: RunConfig, own: Cost, d: int | None) -> Iterator[str]:
    privacy = run.privacy
    examples = privacy.public_examples
    doubts = [weak(own.epsilon), loose_delta(privacy.delta, examples, run.task.unit)]
    if d is not None:
        doubts.append(hopeless(privacy, sigma=own.sigma, d=d, examples=examples))
    yield from filter(None, doubts)


def _graphs(run: RunConfig, names: Sequence[str]) -> tuple[list[Json], dict[str, str]]:
    """Facts of every graph of the table over these names, and why others can't be had. Given edges
    count as one.
    """
    facts, impossible = [], {}
    for kind in sorted(TOPOLOGIES if run.wiring.edges else TOPOLOGIES.keys() - {"edges"}):
        try:
            facts.append(_facts(kind, make_neighborhoods(kind, names, run.wiring)))
        except ConfigurationError as error:
            impossible[kind] = str(error)
    return facts, impossible


def _facts(kind: str, neighborhoods: Mapping[str, Neighborhood]) -> Json:
    gap = spectral_gap({name: neighborhood.weight for name, neighborhood in neighborhoods.items()})
    return {
        "graph": kind,
        "degree": max(neighborhood.degree for neighborhood in neighborhoods.values()),
        "spectral_gap": gap,
    }


def _parameters(run: RunConfig) -> int | None:
    """d of the model; None where it follows from data that are not here."""
    if run.task.data == "own":
        return None
    return make(run, np.arange(1)).layout.size


def _up(sigma: float) -> float:
    digit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    return round(math.ceil(round(sigma / digit, 6)) * digit, 12)


def _lifetime(question: Question, mechanism: Mechanism) -> Lifetime:
    """Read from the ledger itself; where there is none yet, nothing was spent."""
    budget, rounds = question.budget, question.run.train.rounds
    now, left = account(budget, question.data), None
    with closing(Ledger.look(budget.folder, question.data)) as ledger:
        rows = ledger.rows()
    if now.limit is not None:
        compositions = remaining_compositions(
            rows, mechanism, now.limit, budget.delta, most=mechanism.compositions(rounds)
        )
        left = compositions // max(mechanism.compositions(1), 1)
    other_unit = not units(rows) <= {question.run.task.unit}
    known = {each.name: getattr(now, each.name) for each in fields(now)}
    if other_unit:
        known |= {"spent": math.inf, "left": None if now.limit is None else 0.0}
    return Lifetime(
        **known,
        planned=epsilon_total(mechanism, rounds, budget.delta),
        other_unit=other_unit,
        rounds_left=left,
    )
