"""`[experiment]`: what only `up`, `simulate` and `pack` read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from node.config.node import AttackSection
from node.config.run import RunConfig
from node.config.section import Device, Section


class Attackers(AttackSection):
    """`[experiment.attack]`: some nodes of the experiment attack. Every other key is the attack's
    own.
    """

    nodes: int | tuple[str, ...] = 1
    """Who attacks: names, or a number of nodes, spread evenly over the sorted names from the first
    on.
    """


class ExperimentSection(Section):
    """Read by `up` and `simulate` only."""

    nodes: int = Field(default=4, ge=1)
    """Number of nodes, named n0, n1, … (zero-padded)."""
    partition: Literal["iid", "dirichlet", "dirichlet-unequal", "shards", "column"] = "dirichlet"
    """How the public data set is divided. dirichlet: each node draws class priors, and all get
    equally many rows (as in the papers). dirichlet-unequal: each class is divided by a Dirichlet
    draw. shards: rows sorted by label are cut, each node gets `shards` pieces. column: the values
    of `column` are dealt to the nodes."""
    alpha: float = Field(default=0.25, gt=0)
    """Dirichlet concentration; small is very non-IID."""
    shards: int = Field(default=2, ge=1)
    """Pieces per node."""
    column: str = ""
    """A table's column, or an array [n] of the .npz, e.g. the writer of a digit; for texts also
    `language` or `file`. If it is given, the other partitions divide by its values instead of the
    labels, too."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the partition."""
    device: Device = "cpu"
    """Where gradients are computed (see compute.device). Small models are faster on the CPU, and
    bits repeat only there.
    """
    attack: Attackers | None = None
    """Some of the nodes attack the others; run.toml never says so."""

    @property
    def attackers(self) -> tuple[str, ...]:
        """Who attacks, sorted."""
        if self.attack is None:
            return ()
        nodes = self.attack.nodes
        if isinstance(nodes, int):
            return tuple(self.names[k * self.nodes // nodes] for k in range(nodes))
        return tuple(sorted(nodes))

    def attack_of(self, name: str) -> AttackSection | None:
        """What this node does to its neighbors, as its node.toml has it."""
        if self.attack is None or name not in self.attackers:
            return None
        return AttackSection(name=self.attack.name, **self.attack.options)

    @model_validator(mode="after")
    def _somebody_is_honest(self) -> ExperimentSection:
        if self.attack is None:
            return self
        nodes = self.attack.nodes
        if isinstance(nodes, int):
            count = nodes
        else:
            count = len(nodes)
            unknown = sorted(set(nodes) - set(self.names))
            if unknown:
                first, last = self.names[0], self.names[-1]
                raise ValueError(
                    f"attack.nodes names {unknown[0]}, but the nodes are {first} … {last}"
                )
            if len(set(nodes)) < count:
                raise ValueError("attack.nodes names a node twice")
        if count < 1 or count > self.nodes:
            raise ValueError(
                f"attack.nodes = {count} of {self.nodes} nodes; 1 to {self.nodes - 1} can attack"
            )
        if count == self.nodes:
            raise ValueError(
                f"all {count} nodes attack and no honest node is left; lower attack.nodes"
            )
        return self

    @property
    def names(self) -> list[str]:
        """n0, n1, …, as wide as the last, so that sorting them is counting them."""
        width = len(str(self.nodes - 1))
        return [f"n{i:0{width}}" for i in range(self.nodes)]


class ExperimentConfig(RunConfig):
    """The file of `up` and `simulate`: a run and `[experiment]`."""

    experiment: ExperimentSection = ExperimentSection()

    @property
    def run_config(self) -> RunConfig:
        """The run alone."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})
