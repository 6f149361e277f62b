"""One node's learning without a network: its task, its gate and its algorithm, and what may be said
of them.

The daemon runs a `Learner` with `rounds/driver.py`, an experiment in one process runs all of them
with `rounds/lockstep.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from node.algorithms import Algorithm, Capability, find
from node.attacks import Attack
from node.config import (
    RunConfig,
)
from node.figures import check_declared, headline
from node.hooks import no_op
from node.learning.averaged import last_model
from node.learning.plan import Plan
from node.learning.unusable import UnusableRecords
from node.privacy.accountant import (
    Mechanism,
    Spent,
    epsilon_link,
    epsilon_pld,
    epsilon_rdp,
    units,
)
from node.privacy.gate import GradientGate
from node.privacy.ledger import Ledger
from node.records import checkpoint, summary
from node.records.exported import COORDINATES, INPUT_SHAPE, coordinates
from node.records.journal import code_version
from node.records.summary import Epsilon, Mixing, Privacy, Range, Summary
from node.rounds.bounds import Bounds
from node.task import Task
from peer.errors import PeerpoiseError
from peer.message import Peer
from peer.neighborhood import Neighborhood


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEpsilon:
    total: float = 0.0
    link: float = 0.0
    lifetime: float = 0.0


@dataclass(slots=True, kw_only=True)
class Learner:
    """One node's part of a run."""

    name: Peer
    plan: Plan
    task: Task
    algorithm: Algorithm
    gate: GradientGate
    ledger: Ledger | None
    mechanism: Mechanism
    sigma: float
    start_digest: bytes
    """SHA-256 of the initial parameters."""
    unusable: UnusableRecords
    bounds: Bounds
    """What every payload of the run is held to."""
    attack: Attack | None = None
    """What it does to its neighbors."""
    remarks: Sequence[str] = ()
    """What must be said beside its ε, besides the plan's warning."""

    @property
    def run(self) -> RunConfig:
        return self.plan.run

    @property
    def diverged(self) -> bool:
        """Are the own parameters not finite, or beyond the bounds?"""
        x = last_model(self.algorithm)
        return not summary.norm(x) <= self.bounds.norm(x.numel())

    @property
    def neighborhood(self) -> Neighborhood:
        return self.plan.neighborhoods[self.name]

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        """The algorithm's figures of the last round, by their declared names."""
        figures = self.algorithm.diagnostics()
        check_declared(figures, self.plan.algorithm.DIAGNOSTICS)
        for declared in self.plan.algorithm.DIAGNOSTICS:
            shown = figures.get(declared.name)  # those per neighbor may be hidden: they must be so
            assert shown is None or isinstance(shown, Mapping) == declared.per_neighbor
        return figures

    def evaluate(
        self,
        yield_point: Callable[[], None] = no_op,
        *,
        warn: Callable[[PeerpoiseError], None],
    ) -> dict[str, float]:
        """Public test metrics of the present parameters; a failure costs them, not the run, and
        `warn` hears of it.
        """
        try:
            measured = self.task.evaluate(self.algorithm.parameters, yield_point)
        except PeerpoiseError as error:
            warn(error)
            return {}
        check_declared(measured, self.task.metrics)
        return measured

    @property
    def about_model(self) -> Mapping[str, str]:
        """What is kept beside its parameters: the form of the inputs they are for."""
        shape, words = self.task.input_shape, coordinates(self.run)
        about = {} if shape is None else {INPUT_SHAPE: json.dumps(shape)}
        return {**about, COORDINATES: words} if words else about

    def save_model(self, file: Path) -> None:
        layout, x = self.task.layout, self.algorithm.parameters
        checkpoint.save_model(file, layout, x, self.about_model)

    def live_epsilon(self, lifetime_delta: float) -> LiveEpsilon:
        """ε of what was released, by Rényi divergence; not above the run's target, which σ was
        calibrated for.
        """
        if self.ledger is None:
            return LiveEpsilon(total=float("inf"), link=float("inf"), lifetime=float("inf"))
        delta, rows = self.run.privacy.delta, self.ledger.rows(self.run.run_id)
        total = epsilon_rdp(rows, delta)
        planned = self.mechanism.compositions(self.run.train.rounds)
        if (
            self.run.privacy.epsilon is not None
            and total < float("inf")
            and self.run.privacy.mode == "strict"
            and sum(row.compositions for row in rows) <= planned  # more, if lost ones were counted
        ):
            total = min(total, self.run.privacy.epsilon)
        alone = replace(self.mechanism, releases=1)
        longest = self.ledger.longest(self.run.run_id)
        link = (
            min(total, epsilon_rdp([Spent(alone, longest)], delta))
            if total < float("inf")
            else total
        )
        ever = self.ledger.rows()
        same = units(ever) <= {self.mechanism.unit}
        lifetime = epsilon_rdp(ever, lifetime_delta) if same else float("inf")
        return LiveEpsilon(total=total, link=link, lifetime=lifetime)

    @property
    def compositions(self) -> int:
        """Those of all runs on these data."""
        return sum(row.compositions for row in self.ledger.rows()) if self.ledger else 0

    def lifetime(self, delta: float) -> float:
        """ε_total of these data over all runs, by PLD; inf: there is none."""
        rows = self.ledger.rows() if self.ledger else []
        same = self.ledger is not None and units(rows) <= {self.mechanism.unit}
        return epsilon_pld(rows, delta) if same else float("inf")

    def spent(self, t: int, live: LiveEpsilon, lifetime_delta: float) -> dict[str, object]:
        """ε after round t (-1: before the first) with all its conditions, as the journal has it."""
        config = self.run.privacy
        return {
            "round": t,
            "total": live.total,
            "link": live.link,
            "lifetime": live.lifetime,
            "lifetime_delta": lifetime_delta,
            "mode": config.mode,
            "batches": self.mechanism.batches,
            "adjacency": self.run.task.adjacency,
            "delta": config.delta,
            "accountant": "RDP",
            "against": self.against,
        }

    @property
    def against(self) -> str:
        """Against whom an ε of this run holds, in words."""
        config = self.run.privacy
        words = (
            "any coalition of other nodes" if config.mode == "strict" else "nobody: no guarantee"
        )
        if config.insecure_seed is not None:
            words = "VOID: the noise is public"
        return words + ("" if self.run.validation.public else f", {summary.UNCOVERED}")

    def privacy(self) -> Privacy:
        """What may be said of this node's privacy; stated by PLD."""
        config = self.run.privacy
        stated, releases = Epsilon(), None
        if config.mode == "strict" and self.ledger is not None:
            rows = self.ledger.rows(self.run.run_id)
            releases = summary.Releases(
                made=sum(row.compositions for row in rows),
                planned=self.mechanism.compositions(self.run.train.rounds),
            )
            total = epsilon_pld(rows, config.delta)
            longest = self.ledger.longest(self.run.run_id)
            alone = epsilon_link(self.mechanism, longest, config.delta)
            link = None if self.plan.algorithm.SILENT else min(total, alone)
            stated = Epsilon(total=total, link=link, per_node={self.name: total})
        return Privacy(
            mode=config.mode,
            batches=None if config.mode == "none" else self.mechanism.batches,
            adjacency=self.run.task.adjacency,
            unit=self.run.task.unit,
            delta=None if config.mode == "none" else config.delta,
            sigma=None if config.mode == "none" else self.sigma,
            accountant="PLD" if config.mode == "strict" else None,
            epsilon=stated,
            releases=releases,
            public_validation=self.run.validation.public,
            insecure_seed=config.insecure_seed is not None,
            budget_reached=[self.name] if self.gate.exhausted else [],
            warning=" ".join(filter(None, (self.plan.warning, *self.remarks))) or None,
        )

    def stated(self, privacy: Privacy) -> Mapping[str, object] | None:
        """ε_total of the run as its summary states it, with its conditions; None in mode none."""
        if privacy.mode == "none":
            return None
        return {
            "total": privacy.epsilon.total,
            "mode": privacy.mode,
            "adjacency": privacy.adjacency,
            "delta": privacy.delta,
            "accountant": privacy.accountant,
            "against": self.against,
            "unused": privacy.releases.unused if privacy.releases else "",
        }

    def summarize(
        self,
        *,
        rounds_run: int,
        metrics: Mapping[str, float],
        bytes_sent: float,
        measured: Mapping[str, float | Mapping[Peer, float]] = MappingProxyType({}),
        diverged: bool = False,
        **figures: Any,
    ) -> Summary:
        """This node's summary after so many rounds. `measured` goes to `algorithm_metrics`,
        `figures` are further fields of `Summary`. `diverged`: it did so in the round after
        those."""
        diverged = diverged or self.diverged
        first = headline(self.task.metrics, metrics)
        own: dict[str, Any] = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in measured.items()
        }
        return Summary(
            algorithm=self.run.algorithm.name,
            nodes=self.neighborhood.nodes,
            rounds=self.run.train.rounds,
            topology=self.run.topology.kind,
            spectral_gap=self.plan.spectral_gap,
            dataset=self.run.task.data,
            seed=self.run.train.seed,
            headline=first.name if first else None,
            attackers=[self.name] if self.attack else [],
            attack=self.attack.name if self.attack else "",
            privacy=self.privacy(),
            mixing=mixing(self.run),
            diverged=[self.name] if diverged else [],
            loss_not_finite=[self.name]
            if self.run.privacy.mode == "none" and self.unusable.rows
            else [],
            params_digest={self.name: summary.digest(self.algorithm.parameters)},
            task_metrics={
                metric.name: summary.task_metric(
                    metric, {self.name: metrics[metric.name]}, [self.name] if self.attack else []
                )
                for metric in self.task.metrics
                if metric.name in metrics
            },
            algorithm_metrics={
                "bytes_per_step": bytes_sent / rounds_run if rounds_run else None,
                **own,
            },
            version=code_version(),
            config_digest=self.run.digest,
            rounds_run={self.name: rounds_run},
            complete=rounds_run == self.run.train.rounds and not (diverged and self.attack is None),
            bytes_sent=Range(mean=bytes_sent, max=bytes_sent),
            **figures,
        )


def mixing(run: RunConfig) -> Mixing:
    """What may be said of how the run averages."""
    if Capability.POLICY in find(run.algorithm.name).NEEDS:
        return "row"
    by = run.algorithm.options.get("mix_by", "w")  # of ROSS and PDSL
    if by != "w":
        return "trimmed_mean" if by == "trimmed_mean" else "row"
    if run.mix.rule != "mean":
        return run.mix.rule
    return "doubly-stochastic" if run.sync.mode == "round" else "row"
