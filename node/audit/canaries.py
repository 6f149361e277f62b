"""One-run audit with gradient canaries (Steinke, Nasr, Jagielski, arXiv 2305.08846): how well can
curious nodes tell, from what they receive over the wire, which records a node has?

One node's data are canaries: records with a gradient of norm C along an axis of their own, each of
them there or not by a coin; with task.unit a canary is a person. Its gate and algorithm are those
of a run. Scores are the best linear ones (`node.audit.scores`).

Worst cases, as ε supposes them: other nodes' data are known, so that only noise is in their
releases; the curious ones add none of their own; and every record of the node is a canary.

Deviations
    * The vector has as many parameters as there are canaries, not the model's. Canaries don't
      depend on the model, and σ is the run's.
    * ROSS and PDSL weigh neighbors by W (`node.audit.overheard.EqualWorth`).
Not covered
    * What nonlinear scores could see besides, and what follows from the time that answers take.
    * The last round's release, where it is not said to anybody before the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import inf, isqrt

import torch
from torch import Tensor

from node.algorithms import Gradients
from node.audit import Finding, Options, Unfit
from node.audit.bounds import Guesses, Spread, one_run
from node.audit.knowledge import hops, knowledge, room
from node.audit.overheard import notes, participants
from node.audit.scores import Canaries, Noise, Scores, weights
from node.encoding import Json
from node.experiments.report.tables import Grid
from node.experiments.resolve import ResolvedRun
from node.learning.plan import Plan
from node.privacy.accountant import Mechanism, epsilon_pld, epsilon_total
from node.privacy.calibration import release_mechanism
from node.privacy.gate import GateConfig, GradientGate, make_gate
from node.privacy.ledger import Ledger
from node.randomness import Keys
from node.records.journal import plain
from node.rounds import lockstep
from node.task import Task
from peer.message import Peer

ERROR = 0.05
"""Of a bound that is reported: 95 % confidence."""
FALSE_ALARM = 1e-4
"""A run that keeps its promise is called broken so often at most."""
QUICK = 2_500
"""Canaries at most of a quick audit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """Who puts together what they hear."""

    title: str
    nodes: tuple[Peer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What an attacker's scores allow to say."""

    attacker: Attacker
    messages: int
    """That it heard."""
    guesses: Guesses
    """That gave the one-run bound."""
    one_run: float
    """ε is at least this, whatever the mechanism; 95 % confidence, as the next."""
    sigma: float
    """The largest noise multiplier with which all releases together would leave scores so far
    apart; the family bound is ε of the run's mechanism with it."""
    spent: float
    """ε_total of what the target's ledger has of this run; inf where the mode has none."""
    sure_one_run: float
    sure_sigma: float
    """The same two with FALSE_ALARM as error, which both share."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One node of a run whose data are canaries."""

    plan: Plan
    target: Peer
    rounds: int
    side: int
    seed: int
    sigma: float
    mechanism: Mechanism

    @classmethod
    def of(cls, plan: Plan, options: Options) -> Setting:
        """Of the node with the most neighbors, which releases most."""
        canaries = min(options.canaries, QUICK) if options.quick else options.canaries
        privacy, d = plan.run.privacy, isqrt(canaries) ** 2
        others = sorted(plan.neighborhoods.keys() - set(options.curious))
        if not others:
            raise Unfit("All nodes are curious, so there is nobody to learn of.")
        target = max(others, key=lambda name: plan.neighborhoods[name].degree)
        sigma = plan.sigma(d)
        return cls(
            plan=plan,
            target=target,
            rounds=min(options.rounds or plan.run.train.rounds, room(plan)),
            side=isqrt(canaries),
            seed=options.seed,
            sigma=sigma,
            mechanism=release_mechanism(
                privacy,
                d=d,
                sigma=sigma,
                releases=plan.algorithm.releases(plan.neighborhoods[target].degree),
                unit=plan.run.task.unit,
            ),
        )

    @cached_property
    def claimed(self) -> float | None:
        """ε_total of the rounds that are attacked; None: the mode promises nothing."""
        return self.epsilon(self.mechanism.sigma) if self.mechanism.mode == "strict" else None

    def epsilon(self, sigma: float) -> float:
        """What the accountant says of these rounds with this noise."""
        if sigma in (0.0, inf):
            return 0.0 if sigma else inf
        mechanism = replace(self.mechanism, sigma=sigma, mode="strict")
        return epsilon_total(mechanism, self.rounds, self.plan.run.privacy.delta)

    def canaries(self) -> Canaries:
        coins = torch.Generator().manual_seed(self.seed)
        return Canaries(self.side, self.plan.run.privacy.clip, coins)

    def gate(self, task: Task, ledger: Ledger) -> GradientGate:
        """The target's own, as in a run."""
        run = self.plan.run
        seed = run.privacy.insecure_seed
        return make_gate(
            GateConfig(
                privacy=run.privacy,
                me=self.target,
                run=run.run_id,
                rounds=run.train.rounds,
                releases=self.mechanism.releases or 1,
                sigma=self.sigma,
                seed=run.train.seed,
                unit=run.task.unit,
            ),
            task,
            ledger=ledger,
            keys=Keys.fresh() if seed is None else Keys.insecure(seed, self.target),
        )

    def gates(
        self, task: Task, curious: Sequence[Peer], ledger: Ledger
    ) -> Callable[[Peer], Gradients]:
        """Everybody's; `ledger`: the target's."""
        privacy, d = self.plan.run.privacy, self.side**2
        std = self.sigma * privacy.clip / privacy.batch
        places = {name: k for k, name in enumerate(sorted(self.plan.neighborhoods))}

        def gate(name: Peer) -> Gradients:
            if name == self.target:
                return self.gate(task, ledger)
            return Noise(0.0 if name in curious else std, d, self.seed + 1 + places[name])

        return gate


def listen(setting: Setting, attacker: Attacker) -> Heard:
    """One run in which the attacker listens.

    Raises:
        Unfit: it hears nothing of the target, or the algorithm can't be audited so.
    """
    plan, task, d = setting.plan, setting.canaries(), setting.side**2
    by = weights(knowledge(plan, attacker.nodes, setting.rounds), setting.target)
    if not by:
        raise Unfit(
            f"{', '.join(attacker.nodes)} hears nothing of {setting.target} in {setting.rounds} "
            f"rounds of {plan.run.algorithm.name}, so there is nothing to audit."
        )
    scores, ledger = Scores(by, d), Ledger.in_memory()
    algorithms = participants(
        plan,
        setting.gates(task, attacker.nodes, ledger),
        attacker.nodes,
        scores,
        layout=task.layout,
        start=task.initial_parameters(0),
    )
    with closing(ledger):
        lockstep.run(algorithms, plan.neighborhoods, setting.rounds)
        spent = epsilon_pld(ledger.rows(), plan.run.privacy.delta)
    return heard(setting, attacker, task, scores.total, len(by), spent)


def heard(
    setting: Setting,
    attacker: Attacker,
    task: Canaries,
    total: Tensor,
    messages: int,
    spent: float,
) -> Heard:
    """What messages add up to along the axes, float64 [d], and what that allows to say."""
    privacy, mechanism = setting.plan.run.privacy, setting.mechanism
    unit = privacy.clip / privacy.batch
    scores, included = (total * task.signs / unit).numpy(), task.included.numpy()
    spread, releases = Spread.of(scores, included), setting.rounds * mechanism.releases
    smallest, best = one_run(scores, included, privacy.delta, ERROR)
    sigma = spread.largest_sigma(mechanism.rate, releases, ERROR)
    return Heard(
        attacker=attacker,
        messages=messages,
        guesses=best,
        one_run=smallest,
        sigma=sigma,
        spent=spent,
        sure_one_run=one_run(scores, included, privacy.delta, FALSE_ALARM / 2)[0],
        sure_sigma=spread.largest_sigma(mechanism.rate, releases, FALSE_ALARM / 2),
    )


def attackers(setting: Setting, curious: Sequence[Peer]) -> list[Attacker]:
    """Those that are named; else a neighbor of the target, all of them together, and a node two
    hops away."""
    if curious:
        return [Attacker(title="the curious", nodes=tuple(sorted(curious)))]
    away = hops(setting.plan.neighborhoods, [setting.target])
    near, far = ([name for name in sorted(away) if away[name] == distance] for distance in (1, 2))
    candidates = [
        Attacker(title="a neighbor", nodes=tuple(near[:1])),
        Attacker(title="all neighbors", nodes=tuple(near) if len(near) > 1 else ()),
        Attacker(title="two hops away", nodes=tuple(far[:1])),
    ]
    return [each for each in candidates if each.nodes]


def audit(resolved: ResolvedRun, options: Options) -> Sequence[Finding]:
    """A run for each attacker.

    Raises:
        Unfit: nothing is said that could be audited.
    """
    setting, results = Setting.of(resolved.plan, options), []
    listeners = attackers(setting, options.curious)
    if not listeners:
        raise Unfit(f"{setting.target} has no neighbor, so nobody hears anything of it.")
    for attacker in listeners:
        options.say(f"canaries: {attacker.title} ({', '.join(attacker.nodes)})")
        results.append(listen(setting, attacker))
    broken = tuple(filter(None, (refuted(setting, each) for each in results)))
    return [
        Finding(table=grid(setting, results), document=document(setting, results), broken=broken)
    ]


def refuted(setting: Setting, each: Heard) -> str:
    """Why this attacker's scores refute what the plan says, or the ledger if that is less; empty:
    they don't."""
    if setting.claimed is None:
        return ""
    claimed = min(setting.claimed, each.spent)
    seen = max(each.sure_one_run, setting.epsilon(each.sure_sigma))
    if seen <= claimed:
        return ""
    return (
        f"What {each.attacker.title} ({', '.join(each.attacker.nodes)}) received is that of "
        f"ε_total ≥ {seen:.3g} (confidence {1 - FALSE_ALARM:.2%}), and the run claims "
        f"{claimed:.3g} ({setting.plan.run.task.adjacency})."
    )


def document(setting: Setting, results: Sequence[Heard]) -> Json:
    """For programs; what is not finite is None."""
    privacy = setting.plan.run.privacy
    converted: Json = plain(
        {
            "mode": privacy.mode,
            "adjacency": setting.plan.run.task.adjacency,
            "target": setting.target,
            "canaries": setting.side**2,
            "rounds": setting.rounds,
            "releases": setting.mechanism.releases,
            "rate": privacy.rate,
            "delta": privacy.delta,
            "sigma": setting.mechanism.sigma,
            "claimed": setting.claimed,
            "confidence": 1 - ERROR,
            "attackers": [
                {
                    "title": each.attacker.title,
                    "nodes": list(each.attacker.nodes),
                    "messages": each.messages,
                    "guesses": asdict(each.guesses),
                    "one_run": each.one_run,
                    "family": setting.epsilon(each.sigma),
                    "sigma": each.sigma,
                    "ledger": each.spent,
                }
                for each in results
            ],
        }
    )
    return converted


def grid(setting: Setting, results: Sequence[Heard]) -> Grid:
    """For people."""
    claimed, run = setting.claimed, setting.plan.run
    privacy, unit = run.privacy, run.task.unit
    promise = {
        "strict": f"ε_total = {claimed or 0:.3g} at δ = {privacy.delta:g}, {run.task.adjacency}",
        "paper": "no guarantee (an ε by the papers' formula is not one)",
        "none": "nothing",
    }
    rows = [
        (
            f"{each.attacker.title} ({', '.join(each.attacker.nodes)})",
            str(each.messages),
            f"{each.guesses.right} of {each.guesses.made}",
            _number(each.one_run),
            _number(setting.epsilon(each.sigma)),
            _number(each.sigma),
        )
        for each in results
    ]
    return Grid(
        title=f"Canaries at {setting.target}: can those who listen tell which "
        f"{f'values of {unit}' if unit else 'records'} it has?",
        head=("who listens", "messages", "right guesses", "ε ≥, one run", "ε ≥, family", "σ ≤"),
        rows=tuple(rows),
        notes=(
            f"{privacy.mode}, {setting.rounds} of {run.train.rounds} rounds, "
            f"{setting.side**2} canaries; claimed: {promise[privacy.mode]}, "
            f"σ = {setting.mechanism.sigma:.4g}",
            "one run: assumes nothing, and sees little. family: the largest noise of the same "
            "mechanism that the scores allow, as the accountant has it; both 95 % confidence",
            *notes(setting.plan),
        ),
    )


def _number(value: float) -> str:
    return "∞" if value == inf else f"{value:.3g}"
