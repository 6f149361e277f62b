"""One node's learning without a network: its task, its gate and its algorithm, put together from a
run file.

The daemon runs a `Learner` with `driver.py`, an experiment in one process runs all of them with
`lockstep.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from node.algorithms import Algorithm, Capability, find, without_noise
from node.attacks import Attack
from node.config import (
    AlgorithmConfig,
    DataSection,
    GeneratorSection,
    PaperCalibrated,
    PrivacySection,
    RunConfig,
    sentence,
)
from node.device import pick
from node.figures import check_declared, headline
from node.hooks import NO_HOOKS, Hooks, no_op
from node.learning import promises
from node.learning.requirements import room_for_blocks
from node.learning.resources import check_compatible, resources
from node.learning.unusable import UnusableRecords
from node.maths.blocks import BlockSchedule
from node.maths.coalitions import ShapleyConfig, unsupported_reason
from node.maths.graph import spectral_gap
from node.maths.grpo import GrpoConfig
from node.maths.policy import Draws
from node.maths.robust import undersized_neighborhood
from node.privacy.accountant import (
    WEAK,
    Mechanism,
    Spent,
    epsilon_link,
    epsilon_pld,
    epsilon_rdp,
    epsilon_total,
)
from node.privacy.calibration import noise_multiplier, release_mechanism
from node.privacy.gate import GateConfig, GradientGate, make_gate
from node.privacy.ledger import Ledger
from node.randomness import Keys
from node.records import summary
from node.records.journal import code_version
from node.records.summary import Epsilon, Mixing, Privacy, Range, Summary
from node.rounds.bounds import Bounds
from node.task import Task
from node.tasks import TASKS, make
from node.tasks.rewarded import RewardedTask
from peer.errors import ConfigurationError, PeerpoiseError, TaskError
from peer.message import Peer
from peer.neighborhood import Neighborhood

ADJACENCY = "add/remove one example"
"""Adjacency relation of every reported ε."""
PAPER_WARNING = (
    "Mode paper follows the papers' own calibration: the clean own gradient enters what is sent, "
    "so no ε is guaranteed."
)
SEED_WARNING = (
    "privacy.insecure_seed is set: anybody who knows it can compute noise and batches; there is no "
    "guarantee."
)
NO_PRIVACY = (
    "Mode none: gradients leave without noise; whoever receives them can reconstruct private "
    "examples."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What follows from run file and graph alone; the same at every node."""

    run: RunConfig
    algorithm: type[Algorithm]
    options: AlgorithmConfig
    """The algorithm's own configuration."""
    neighborhoods: Mapping[Peer, Neighborhood]
    spectral_gap: float | None = None
    """Of W; None: the graph is not known yet."""

    @classmethod
    def of(cls, run: RunConfig, neighborhoods: Mapping[Peer, Neighborhood]) -> Plan:
        """Raises ConfigurationError: an algorithm, option or mode that is unknown, or a graph too
        thin for mix.rule.
        """
        algorithm = find(run.algorithm.name)
        try:
            options = algorithm.Config(**run.algorithm.options)
        except ValidationError as error:
            raise ConfigurationError(
                sentence(error, within="algorithm", of=run.algorithm.name)
            ) from None
        if (own := without_noise(run.algorithm.name)) and run.privacy.mode != "strict":
            raise ConfigurationError(
                f'{run.algorithm.name} is {own} with noise: set privacy.mode = "strict", or name '
                f"{own} instead."
            )
        if run.privacy.mode != "none" and not algorithm.PRIVATE:
            raise ConfigurationError(
                f"{run.algorithm.name} has no differential privacy: what it sends shows what it "
                'learned from. Set privacy.mode = "none" if that may be, or take another algorithm.'
            )
        if run.privacy.mode == "paper" and not isinstance(options, PaperCalibrated):
            raise ConfigurationError(
                f'privacy.mode = "paper" is not defined for {run.algorithm.name}; use "strict" or '
                '"none".'
            )
        if run.sync.mode == "async" and isinstance(options, BlockSchedule):
            raise ConfigurationError(
                f'{run.algorithm.name} refuses sync.mode = "async": nodes would be in different '
                "blocks, which have no "
                'mean; set "round" or "quorum", or take dsgd-adam.'
            )
        if run.sync.mode == "async" and Capability.POLICY in algorithm.NEEDS:
            raise ConfigurationError(
                f'{run.algorithm.name} refuses sync.mode = "async": an update belongs to its '
                'round; set "round" or "quorum".'
            )
        named, mix = "mix.rule", run.mix
        if isinstance(options, ShapleyConfig) and options.mix_by == "trimmed_mean":
            named, mix = "algorithm.mix_by", mix.model_copy(update={"rule": "trimmed_mean"})
        if not algorithm.POOLED and (node := undersized_neighborhood(neighborhoods, mix)):
            raise ConfigurationError(
                f"{named} = {mix.rule} can tell nothing from so few: {node} and its neighbors are "
                f"{len(neighborhoods[node].weight)}; lower mix.byzantine, take more edges, or "
                "another rule."
            )
        if isinstance(options, ShapleyConfig):
            _players(run.algorithm.name, options, neighborhoods)
        gap = None
        if neighborhoods:
            gap = spectral_gap({name: each.weight for name, each in neighborhoods.items()})
            options = options.on_graph(gap, len(neighborhoods))
        options = options.on_run(run.train.rounds)
        return cls(
            run=run,
            algorithm=algorithm,
            options=options,
            neighborhoods=neighborhoods,
            spectral_gap=gap,
        )

    def check_task(self, task: Task) -> None:
        """Raises ConfigurationError: the algorithm needs what the task lacks, or its options don't
        suit the task's questions."""
        check_compatible(self.algorithm, task)
        if isinstance(task, RewardedTask):
            self.options.check_families(task.generators, task.scored)

    def sigma(self, d: int) -> float:
        """The nominal noise multiplier of the run for d parameters, calibrated for the largest
        neighborhood.

        Takes a CPU second or two in mode strict with a target ε.
        """
        privacy, rounds = self.run.privacy, self.run.train.rounds
        if privacy.mode == "none":
            return 0.0
        if privacy.sigma is not None:
            return privacy.sigma
        if privacy.mode == "paper":
            assert privacy.epsilon is not None
            assert isinstance(self.options, PaperCalibrated)
            return max(
                self.options.paper_sigma(
                    neighborhood,
                    rate=privacy.paper_q or privacy.rate,
                    rounds=rounds,
                    epsilon=privacy.epsilon,
                    delta=privacy.delta,
                )
                for neighborhood in self.neighborhoods.values()
            )
        return noise_multiplier(privacy, d=d, rounds=rounds, releases=self.releases)

    @property
    def releases(self) -> int:
        """|K| of the largest closed neighborhood."""
        return max(
            self.algorithm.releases(neighborhood.degree)
            for neighborhood in self.neighborhoods.values()
        )

    @property
    def epsilon(self) -> float | None:
        """Planned ε_total (PLD) at the largest neighborhood; None: the mode has none. The grid of
        the noise, which needs the model, is left out: less than a part in a thousand. Some 0.2 s
        where σ is given."""
        privacy, rounds = self.run.privacy, self.run.train.rounds
        if privacy.mode != "strict" or not self.neighborhoods:
            return None
        if privacy.sigma is None:
            return privacy.epsilon
        planned = release_mechanism(privacy, d=0, sigma=privacy.sigma, releases=self.releases)
        return _planned(planned, rounds, privacy.delta)

    @property
    def warning(self) -> str | None:
        """The warning that accompanies every statement of this run's privacy."""
        return warning(self.run.privacy, self.epsilon)


def _players(name: str, options: ShapleyConfig, neighborhoods: Mapping[Peer, Neighborhood]) -> None:
    """Raises ConfigurationError unless everybody has neighbors to value, not too many for the
    options.
    """
    for node, neighborhood in sorted(neighborhoods.items()):
        if not neighborhood.degree:
            raise ConfigurationError(
                f"{name} values neighbors, and {node} has none; take more nodes, or local."
            )
        if why := unsupported_reason(options, len(neighborhood.weight)):
            raise ConfigurationError(f"Configuration: algorithm: {why} ({name}, {node})")


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

    @property
    def run(self) -> RunConfig:
        return self.plan.run

    @property
    def diverged(self) -> bool:
        """Are the own parameters not finite, or beyond the bounds?"""
        x = self.algorithm.parameters
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

    def live_epsilon(self, lifetime_delta: float) -> LiveEpsilon:
        """ε of what was released, by Rényi divergence; not above the run's target, which σ was
        calibrated for.
        """
        if self.ledger is None:
            return LiveEpsilon(total=float("inf"), link=float("inf"), lifetime=float("inf"))
        delta, rows = self.run.privacy.delta, self.ledger.rows(self.run.run_id)
        total = epsilon_rdp(rows, delta)
        if (
            self.run.privacy.epsilon is not None
            and total < float("inf")
            and self.run.privacy.mode == "strict"
        ):
            total = min(total, self.run.privacy.epsilon)
        alone = replace(self.mechanism, releases=1)
        longest = self.ledger.longest(self.run.run_id)
        link = (
            min(total, epsilon_rdp([Spent(alone, longest)], delta))
            if total < float("inf")
            else total
        )
        return LiveEpsilon(
            total=total, link=link, lifetime=epsilon_rdp(self.ledger.rows(), lifetime_delta)
        )

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
            "adjacency": ADJACENCY,
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
        stated = Epsilon()
        if config.mode == "strict" and self.ledger is not None:
            total = _stated(tuple(self.ledger.rows(self.run.run_id)), config.delta)
            link = min(
                total,
                epsilon_link(self.mechanism, self.ledger.longest(self.run.run_id), config.delta),
            )
            stated = Epsilon(total=total, link=link, per_node={self.name: total})
        return Privacy(
            mode=config.mode,
            batches=None if config.mode == "none" else self.mechanism.batches,
            delta=None if config.mode == "none" else config.delta,
            sigma=None if config.mode == "none" else self.sigma,
            accountant="PLD" if config.mode == "strict" else None,
            epsilon=stated,
            public_validation=self.run.validation.public,
            insecure_seed=config.insecure_seed is not None,
            warning=self.plan.warning,
        )

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
                **{
                    name: dict(value) if isinstance(value, Mapping) else value
                    for name, value in measured.items()
                },
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


@lru_cache
def _stated(rows: tuple[Spent, ...], delta: float) -> float:
    return epsilon_pld(rows, delta)


@lru_cache
def _planned(mechanism: Mechanism, rounds: int, delta: float) -> float:
    return epsilon_total(mechanism, rounds, delta)


def weak(planned: float | None) -> str | None:
    """What must be said of a planned ε_total that promises next to nothing; None: it does promise
    something.
    """
    if planned is None or planned <= WEAK:
        return None
    return (
        f"The planned ε_total is {planned:.3g}, and above {WEAK:g} it promises next to nothing: "
        "what leaves may show single records; set privacy.epsilon to 10 or less, or privacy.sigma "
        "higher."
    )


def warning(config: PrivacySection, planned: float | None = None) -> str | None:
    """The warning that accompanies every statement of privacy if this ε_total is planned."""
    sentences = [
        PAPER_WARNING if config.mode == "paper" else "",
        NO_PRIVACY if config.mode == "none" else "",
        SEED_WARNING if config.insecure_seed is not None and config.mode != "none" else "",
        weak(planned) or "",
    ]
    return " ".join(filter(None, sentences)) or None


def build(
    plan: Plan,
    name: Peer,
    data: DataSection | NDArray[np.int64],
    *,
    ledger: Ledger | None,
    sigma: float | None = None,
    start: Tensor | None = None,
    limit: float | None = None,
    limit_delta: float = 1e-5,
    device: str = "cpu",
    generator: GeneratorSection | None = None,
    attack: Attack | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Learner:
    """Puts one node together. `sigma` and `start` (initial parameters) are computed where they are
    not given; `device` is what `compute.device` says. `generator`: who draws its answers. `attack`:
    what it does to its neighbors.

    Raises:
        ConfigurationError, DataError, LedgerError: one sentence.
    """
    run = plan.run
    if generator:
        _check_generator(plan)
    keys = _keys(run, name, ledger, limit)
    task = make(run, data, pick(device))
    x = _initial(task, run, start)
    if run.task.name not in TASKS:
        task.evaluate(x, hooks.yield_point)  # a mistake in it is found before anything is released
    task = attack.on_task(task, run, name) if attack else task
    neighborhood = plan.neighborhoods[name]
    sigma = plan.sigma(task.layout.size) if sigma is None else sigma
    releases = plan.algorithm.releases(neighborhood.degree)
    blockwise = Capability.LAYERS in plan.algorithm.NEEDS
    unusable = UnusableRecords(name)
    gate = make_gate(
        GateConfig(
            privacy=run.privacy,
            me=name,
            run=run.run_id,
            rounds=run.train.rounds,
            releases=releases,
            sigma=sigma,
            seed=run.train.seed,
            full_gradient=not blockwise,
            limit=limit,
            limit_delta=limit_delta,
        ),
        task,
        ledger=ledger,
        keys=keys,
        hooks=replace(hooks, on_unusable=unusable),
    )
    start_digest = _digest(x)
    if not blockwise:
        x = x.to(torch.float32)
    draws = Draws(name, run.train.seed, keys, hooks.yield_point, hooks.warn, generator)
    plan.check_task(task)
    given = resources(plan.algorithm, task, start=x, gradients=gate, draws=draws)
    given = attack.on_resources(given) if attack else given
    room_for_blocks(plan.options, run, task, neighborhood.degree)
    algorithm = plan.algorithm(plan.options, given)
    algorithm = attack.on_algorithm(algorithm, run.train.seed) if attack else algorithm
    return Learner(
        name=name,
        plan=plan,
        task=task,
        algorithm=algorithm,
        gate=gate,
        ledger=ledger,
        mechanism=release_mechanism(
            run.privacy, d=task.layout.size, sigma=sigma, releases=releases
        ),
        sigma=sigma,
        start_digest=start_digest,
        unusable=unusable,
        bounds=Bounds.of(run.limits, run.privacy, sigma=sigma, d=task.layout.size),
        attack=attack,
    )


def _check_generator(plan: Plan) -> None:
    """Raises ConfigurationError: the run has no use for answers of a server."""
    if not isinstance(plan.options, GrpoConfig):
        raise ConfigurationError(
            f"{plan.run.algorithm.name} draws no answers; leave [generator] out of the node's file."
        )
    if (plan.options.temperature, plan.options.top_p) != (1.0, 1.0):
        raise ConfigurationError(
            "A generation server's log-probabilities are comparable with temperature = 1 and "
            "top_p = 1 only; set these in [algorithm], or leave [generator] out of the node's file."
        )


def _keys(run: RunConfig, name: Peer, ledger: Ledger | None, limit: float | None) -> Keys:
    """Of noise and batches: fresh ones, or those of `privacy.insecure_seed`, under which a ledger
    counts on no noise.

    Raises:
        ConfigurationError: a budget can't be kept with a seed.
        LedgerError: the ledger can't be written.
    """
    seed = run.privacy.insecure_seed
    if seed is None:
        return Keys.fresh()
    if run.privacy.mode != "none" and ledger is not None:
        if limit is not None:
            raise ConfigurationError(
                "privacy.insecure_seed makes the noise public, so budget.epsilon can't be kept; "
                'remove the seed, or set budget.epsilon = "unlimited".'
            )
        ledger.mark(run.run_id, "none")  # anybody who knows the seed can remove the noise
    return Keys.insecure(seed, name)


def _initial(task: Task, run: RunConfig, given: Tensor | None) -> Tensor:
    """The initial parameters, flat [d]. An own task's promises are tried, and `given` (another
    node's) must be its own.

    Raises:
        TaskError: a promise is broken.
    """
    if run.task.name in TASKS:
        return task.initial_parameters(run.train.seed) if given is None else given
    x = promises.check(task, run.train.seed)
    if given is not None and not torch.equal(x.to(given.dtype), given):
        raise TaskError(
            "The task's initial_parameters(seed) gives other values at each node, so they would "
            "not learn one model; draw them from the seed: torch.manual_seed(seed), within "
            "torch.random.fork_rng()."
        )
    return x


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.detach().contiguous().view(torch.uint8).numpy().data).digest()
