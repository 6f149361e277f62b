"""Lies in what is mixed or said to all, and nowhere else: what weighs or filters gradients never
sees them.
"""

from __future__ import annotations

from torch import Tensor

from node.attacks.byzantine import MessageAttack, OutgoingVector
from node.config import OpenSection
from peer.errors import ConfigurationError


class StateOnlyConfig(OpenSection):
    lie: str = "sign-flip"
    """Which message attack; every further key is that attack's own, except `words`."""


class StateOnly(MessageAttack):
    """Another attack with words = state: answers are honest, so whatever scores a neighbor by its
    gradients (DPDL's cosine, Shapley values of ROSS and PDSL) finds no fault, and mixes the lie
    with w_ij.

    Knows: what that attack knows.
    """

    Config = StateOnlyConfig

    def __init__(self, config: StateOnlyConfig) -> None:
        """Raises ConfigurationError: `lie` is no message attack, or has no such options."""
        from node.attacks import find, make

        kind = find(config.lie)
        if kind is StateOnly or not issubclass(kind, MessageAttack):
            raise ConfigurationError(
                f"attack.lie = {config.lie!r} is no message attack; choose sign-flip, for example."
            )
        if "words" in config.options:
            raise ConfigurationError(
                "attack.words has no place in the attack state, which lies about the state only."
            )
        attack = make(config.lie, {**config.options, "words": ("state",)})
        assert isinstance(attack, MessageAttack)
        super().__init__(attack.config)
        self._attack = attack
        self.listens = attack.listens

    def lie(self, vector: OutgoingVector) -> Tensor:
        return self._attack.lie(vector)
