"""Attackers, for tests of one's own federation: a daemon that lies to its neighbors, one line in the table each.

There are two seams and no third. A DATA attack spoils the training examples between task and door; all that follows is
honest. A WORD attack is asked by `liar.Liar`, which stands between algorithm and driver and passes every word of the
honest algorithm on as a lie. So an attacker is a daemon like any other on the same wire, and in `simulate` the same.

What an attacker says of its own privacy stays true: its door makes, clips, noises and debits what an honest node would
release, and a lie is made of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol, cast

from pydantic import BaseModel, ValidationError
from torch import Tensor

from node.algorithms import Algorithm
from node.attacks.liar import Liar, Lie
from node.attacks.spoilt import Spoilt
from node.config import AttackSection, RunConfig
from node.task import Task
from peer.errors import ConfigurationError
from peer.neighborhood import Neighborhood

ATTACKS: Mapping[str, str] = {
    "label-flip": "node.attacks.examples:LabelFlip",
    "feature-noise": "node.attacks.examples:FeatureNoise",
    "sign-flip": "node.attacks.blind:SignFlip",
    "scaling": "node.attacks.blind:Scaling",
    "gaussian": "node.attacks.blind:Gaussian",
    "zero": "node.attacks.blind:Zero",
    "echo": "node.attacks.listening:Echo",
    "alie": "node.attacks.listening:Alie",
    "inner-product": "node.attacks.listening:InnerProduct",
    "dissensus": "node.attacks.listening:Dissensus",
    "state": "node.attacks.state:StateOnly",
}
"""name -> module:class. A new attack: one class, one line here, one test of its formula."""


class Spoil(Protocol):
    """An attack on the training examples."""

    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: Any) -> None: ...

    def refuse(self, batch: tuple[Tensor, ...]) -> str:
        """Why examples like these (a batch of none) can't be spoilt; empty: they can."""
        ...

    def spoil(self, rows: Tensor, batch: tuple[Tensor, ...], *, classes: int, seed: int, me: str) -> tuple[Tensor, ...]:
        """The examples of these row numbers, spoilt: the same at every call. `batch` may be on another device."""
        ...


@dataclass(frozen=True, slots=True)
class Attack:
    """What one node does, ready to be put at its seam."""

    name: str
    how: Spoil | Lie

    @classmethod
    def of(cls, section: AttackSection) -> Attack:
        """Raises ConfigurationError: no attack of that name, or options that it does not have."""
        kind = find(section.name)
        try:
            return cls(section.name, kind(kind.Config(**section.options)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
            raise ConfigurationError(f"Configuration: attack.{key}: {what} ({section.name}).") from None

    def on_task(self, task: Task, run: RunConfig, me: str) -> Task:
        """The task with its examples spoilt; of a word attack the task itself.

        Raises:
            ConfigurationError: its examples have no labels or features that could be spoilt.
        """
        return task if isinstance(self.how, Lie) else Spoilt.of(task, self.how, self.name, run, me)

    def on_algorithm(self, algorithm: Algorithm, hood: Neighborhood, seed: int) -> Algorithm:
        """The algorithm with its words as lies; of a data attack the algorithm itself."""
        return cast(Algorithm, Liar(algorithm, self.how, hood, seed)) if isinstance(self.how, Lie) else algorithm

    @property
    def warning(self) -> str:
        """What the attacker says of itself, to its own people."""
        return f"This node ATTACKS its neighbors ({self.name}), as it was told to."


def find(name: str) -> Any:
    """The attack's class.

    Raises:
        ConfigurationError: no attack of that name.
    """
    if name not in ATTACKS:
        raise ConfigurationError(f"Unknown attack {name!r}; choose one of {', '.join(sorted(ATTACKS))}.")
    module, _, attribute = ATTACKS[name].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["ATTACKS", "Attack", "find"]
