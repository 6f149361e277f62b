"""What follows from run file and graph alone, before a task or data are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from node.algorithms import Algorithm, Capability, find, without_noise
from node.config import (
    AlgorithmConfig,
    PaperCalibrated,
    RunConfig,
    sentence,
)
from node.learning.resources import check_compatible
from node.learning.warnings import warning
from node.maths.blocks import BlockSchedule
from node.maths.coalitions import ShapleyConfig, unsupported_reason
from node.maths.graph import spectral_gap
from node.maths.robust import undersized_neighborhood
from node.privacy.accountant import (
    epsilon_total,
)
from node.privacy.calibration import noise_multiplier, release_mechanism
from node.task import Task
from node.tasks.rewarded import RewardedTask
from peer.errors import ConfigurationError
from peer.message import Peer
from peer.neighborhood import Neighborhood


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
                sentence(error, algorithm.Config, within="algorithm", of=run.algorithm.name)
            ) from None
        _check_privacy(run, algorithm, options)
        _check_sync(run, algorithm, options)
        if not algorithm.POOLED:
            _check_robust(run, options, neighborhoods)
        if isinstance(options, ShapleyConfig):
            _check_players(run.algorithm.name, options, neighborhoods)
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
        planned = release_mechanism(
            privacy, d=0, sigma=privacy.sigma, releases=self.releases, unit=self.run.task.unit
        )
        return epsilon_total(planned, rounds, privacy.delta)

    @property
    def warning(self) -> str | None:
        """The warning that accompanies every statement of this run's privacy."""
        return warning(self.run.privacy, self.run.train, self.epsilon, public=self.algorithm.PUBLIC)


def _check_privacy(run: RunConfig, algorithm: type[Algorithm], options: AlgorithmConfig) -> None:
    """Raises ConfigurationError: the algorithm is not for this privacy mode."""
    name, mode = run.algorithm.name, run.privacy.mode
    if (own := without_noise(name)) and mode != "strict":
        raise ConfigurationError(
            f'{name} is {own} with noise: set privacy.mode = "strict", or name {own} instead.'
        )
    if mode != "none" and algorithm.PUBLIC:
        raise ConfigurationError(
            f"{name} learns from the public validation set, where there is nothing to protect: set "
            'privacy.mode = "none".'
        )
    if mode != "none" and not algorithm.PRIVATE:
        raise ConfigurationError(
            f"{name} has no differential privacy: what it sends shows what it learned from. Set "
            'privacy.mode = "none" if that may be, or take another algorithm.'
        )
    if mode == "paper" and not isinstance(options, PaperCalibrated):
        raise ConfigurationError(
            f'privacy.mode = "paper" is not defined for {name}; use "strict" or "none".'
        )


def _check_sync(run: RunConfig, algorithm: type[Algorithm], options: AlgorithmConfig) -> None:
    """Raises ConfigurationError: the algorithm needs its neighbors to be in the same round."""
    if run.sync.mode != "async":
        return
    name = run.algorithm.name
    if isinstance(options, BlockSchedule):
        raise ConfigurationError(
            f'{name} refuses sync.mode = "async": nodes would be in different blocks, which have '
            'no mean; set "round" or "quorum", or take dsgd-adam.'
        )
    if Capability.POLICY in algorithm.NEEDS:
        raise ConfigurationError(
            f'{name} refuses sync.mode = "async": an update belongs to its round; set "round" or '
            '"quorum".'
        )


def _check_robust(
    run: RunConfig, options: AlgorithmConfig, neighborhoods: Mapping[Peer, Neighborhood]
) -> None:
    """Raises ConfigurationError: a robust rule has too few neighbors to choose among."""
    setting, mix = "mix.rule", run.mix
    if isinstance(options, ShapleyConfig) and options.mix_by == "trimmed_mean":
        setting, mix = "algorithm.mix_by", mix.model_copy(update={"rule": "trimmed_mean"})
    if node := undersized_neighborhood(neighborhoods, mix):
        raise ConfigurationError(
            f"{setting} = {mix.rule} can tell nothing from so few: {node} and its neighbors are "
            f"{len(neighborhoods[node].weight)}; lower mix.byzantine, take more edges, or another "
            "rule."
        )


def _check_players(
    name: str, options: ShapleyConfig, neighborhoods: Mapping[Peer, Neighborhood]
) -> None:
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
