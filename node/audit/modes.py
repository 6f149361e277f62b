"""One experiment in each privacy mode that its algorithm has, so that attacks can be compared; and
which experiments can be attacked.
"""

from __future__ import annotations

from node.algorithms import Capability, find, without_noise
from node.config import ExperimentConfig, PaperCalibrated
from node.data.partition import Rows
from node.data.units import whole
from node.experiments.resolve import ResolvedRun
from node.privacy.accountant import Mode
from peer.errors import ConfigurationError
from peer.message import Peer

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


def owner_of(resolved: ResolvedRun, owner: Peer | None = None) -> Peer:
    """Whose records are attacked: the first node's, if nobody is named.

    Raises:
        ConfigurationError: its records are not here, nobody hears it, or what it sends are no
            whole models and gradients.
    """
    algorithm, parts = resolved.plan.algorithm, resolved.parts
    name = owner or next(iter(parts), "")
    if resolved.train is None:
        raise ConfigurationError(
            'This attack takes single records, and with task.data = "own" they stay with their '
            "hosts, whose records nobody should see attacked; try it on public ones of the same "
            "form: --set task.data=file --set task.path=FILE."
        )
    if algorithm.POOLED:
        raise ConfigurationError(
            f"{resolved.run.algorithm.name} is one node with all data, which sends nothing that "
            "could be attacked; take an algorithm of several nodes."
        )
    if name not in parts:
        raise ConfigurationError(f"{name} is no node of this run; they are {', '.join(parts)}.")
    if algorithm.NEEDS & {Capability.LAYERS, Capability.POLICY}:
        raise ConfigurationError(
            f"No attack is made for what {resolved.run.algorithm.name} sends (blocks of a model, "
            "or updates by rewards); take dpdl or d-psgd."
        )
    if not resolved.plan.neighborhoods[name].neighbors:
        raise ConfigurationError(f"{name} has no neighbors, and nobody sees what it sends.")
    return name


def examples_of(resolved: ResolvedRun, owner: Peer) -> list[Rows]:
    """The rows of each of its examples, in their order: one row, or with task.unit all of one
    person.
    """
    rows, train = resolved.parts[owner], resolved.train
    if not resolved.run.task.unit:
        return [*rows.reshape(-1, 1)]
    assert train is not None
    assert train.units is not None
    return [rows[places] for places in whole(train.units[rows])]
