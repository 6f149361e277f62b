"""One experiment in each privacy mode that its algorithm has, so that attacks can be compared."""

from __future__ import annotations

from node.algorithms import find, without_noise
from node.config import ExperimentConfig, PaperCalibrated
from node.privacy.accountant import Mode

EPSILON = 8.0
"""ε_total of the noised modes where the experiment names none."""


def modes_of(config: ExperimentConfig) -> tuple[Mode, ...]:
    """The modes in which its algorithm runs, the most private first."""
    algorithm = find(config.algorithm.name)
    if not algorithm.PRIVATE:
        return ("none",)
    return (
        ("strict", "paper", "none")
        if issubclass(algorithm.Config, PaperCalibrated)
        else (
            "strict",
            "none",
        )
    )


def in_mode(config: ExperimentConfig, mode: Mode, epsilon: float = EPSILON) -> ExperimentConfig:
    """The experiment in this mode, all else equal; `epsilon` where it names neither ε nor σ."""
    privacy = config.privacy.model_copy(update={"mode": mode})
    if mode != "none" and privacy.epsilon is None and privacy.sigma is None:
        privacy = privacy.model_copy(update={"epsilon": epsilon})
    algorithm = config.algorithm
    if mode == "none" and (name := without_noise(algorithm.name)):
        algorithm = algorithm.model_copy(update={"name": name})
    return config.model_copy(update={"privacy": privacy, "algorithm": algorithm})
