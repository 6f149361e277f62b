"""Attackers, for tests of one's own federation: daemons that lie to their neighbors, one line in
the table each.

There are three seams. A DATA attack poisons the training examples between task and gate; all that
follows is honest. A MESSAGE attack is called by `byzantine.ByzantineAlgorithm`, which stands
between algorithm and driver and falsifies the honest algorithm's messages. A POLICY attack stands
between an algorithm and its policy, which learns the wrong thing, or nothing. So an attacker is a
daemon like any other on the same wire, and the same in `simulate`.

What an attacker reports about its own privacy stays true: its gate clips, noises and debits what an
honest node would release, and false messages are computed from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ValidationError
from torch import Tensor

from node.algorithms import Algorithm, Resources
from node.attacks.byzantine import ByzantineAlgorithm, MessageAttack
from node.attacks.hacked_policy import PolicyAttack
from node.attacks.poisoned_task import PoisonedTask
from node.config import AttackSection, RunConfig, sentence
from node.task import Task
from peer.errors import ConfigurationError
from peer.tables import load_entry

ATTACKS: Mapping[str, str] = {
    "label-flip": "node.attacks.data_poisoning:LabelFlip",
    "feature-noise": "node.attacks.data_poisoning:FeatureNoise",
    "sign-flip": "node.attacks.oblivious:SignFlip",
    "scaling": "node.attacks.oblivious:Scaling",
    "gaussian": "node.attacks.oblivious:Gaussian",
    "zero": "node.attacks.oblivious:Zero",
    "echo": "node.attacks.adaptive:Echo",
    "alie": "node.attacks.adaptive:Alie",
    "inner-product": "node.attacks.adaptive:InnerProduct",
    "dissensus": "node.attacks.adaptive:Dissensus",
    "state": "node.attacks.state_only:StateOnly",
    "reward-hack": "node.attacks.reward_hack:RewardHack",
    "free-rider": "node.attacks.free_rider:FreeRider",
}
"""name -> module:class. A new attack: one class, one line here, one test of its formula."""


class DataPoisoning(Protocol):
    """An attack on the training examples."""

    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: BaseModel) -> None: ...

    def refuse(self, batch: tuple[Tensor, ...]) -> str:
        """Why examples like these (an empty batch) can't be poisoned; empty: they can."""
        ...

    def poison(
        self, rows: Tensor, batch: tuple[Tensor, ...], *, classes: int, seed: int, me: str
    ) -> tuple[Tensor, ...]:
        """The examples of these row numbers, poisoned: the same at every call. `batch` may be on
        another device.
        """
        ...


@dataclass(frozen=True, slots=True)
class Attack:
    """What one node does, ready to be put at its seam."""

    name: str
    attack: DataPoisoning | MessageAttack | PolicyAttack

    @classmethod
    def of(cls, section: AttackSection) -> Attack:
        """Raises ConfigurationError: no attack of that name, or options that it does not have."""
        return cls(section.name, make(section.name, section.options))

    def on_task(self, task: Task, run: RunConfig, me: str) -> Task:
        """The task with its examples poisoned; for a message attack, the task itself.

        Raises:
            ConfigurationError: its examples have no labels or features that could be poisoned.
        """
        if isinstance(self.attack, MessageAttack | PolicyAttack):
            return task
        return PoisonedTask.of(task, self.attack, self.name, run, me)

    def on_resources(self, resources: Resources) -> Resources:
        """With a policy that learns something else; for other attacks as they are.

        Raises:
            ConfigurationError: there is no policy.
        """
        if not isinstance(self.attack, PolicyAttack):
            return resources
        if resources.policy is None:
            raise ConfigurationError(
                f"The attack {self.name} is for algorithms whose answers are rewarded; take fgrpo."
            )
        return replace(resources, policy=self.attack.hacked(resources.policy))

    def on_algorithm(self, algorithm: Algorithm, seed: int) -> Algorithm:
        """The algorithm with its messages falsified; of a data attack the algorithm itself."""
        if isinstance(self.attack, MessageAttack):
            return ByzantineAlgorithm(algorithm, self.attack, seed)
        return algorithm

    @property
    def warning(self) -> str:
        """What the attacker says of itself, to its own people."""
        return f"This node ATTACKS its neighbors ({self.name}), as configured."


def make(name: str, options: Mapping[str, object]) -> DataPoisoning | MessageAttack | PolicyAttack:
    """The attack of this name.

    Raises:
        ConfigurationError: no attack of that name, or options that it does not have.
    """
    kind = find(name)
    try:
        attack: DataPoisoning | MessageAttack | PolicyAttack = kind(kind.Config(**options))
    except ValidationError as error:
        raise ConfigurationError(sentence(error, kind.Config, within="attack", of=name)) from None
    return attack


def find(name: str) -> Any:
    """The attack's class.

    Raises:
        ConfigurationError: no attack of that name.
    """
    return load_entry(ATTACKS, name, "attack")


__all__ = ["ATTACKS", "Attack", "find"]
