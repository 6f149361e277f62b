"""Lies in what is mixed or said to all, and nowhere else: what weighs or filters gradients never
sees them.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel
from torch import Tensor

from node.attacks.byzantine import MessageAttack, MessageAttackConfig, OutgoingVector
from node.config import OpenSection
from peer.errors import ConfigurationError


class StateOnlyConfig(OpenSection):
    lie: str = "sign-flip"
    """Which message attack; every further key is that attack's own, except `words`."""


class StateOnly:
    """Another attack with words = state: answers are honest, so whatever scores a neighbor by its
    gradients (DPDL's cosine, Shapley values of ROSS and PDSL) finds no fault, and mixes the lie
    with w_ij.

    Knows: what that attack knows.
    """

    Config: ClassVar[type[BaseModel]] = StateOnlyConfig

    def __init__(self, config: StateOnlyConfig) -> None:
        """Raises ConfigurationError: `lie` is no word attack, or has no such options."""
        from node.attacks import find, make

        if (kind := find(config.lie)) is StateOnly or not hasattr(kind, "lie"):
            raise ConfigurationError(
                f"attack.lie = {config.lie!r} is no lie in words; choose sign-flip, for example."
            )
        if "words" in config.options:
            raise ConfigurationError(
                "attack.words has no place in the attack state, which lies about the state only."
            )
        attack = make(config.lie, {**config.options, "words": ("state",)})
        assert isinstance(attack, MessageAttack)
        self._attack = attack
        self.config: MessageAttackConfig = self._attack.config
        self.listens = self._attack.listens

    def lie(self, said: OutgoingVector) -> Tensor:
        return self._attack.lie(said)
