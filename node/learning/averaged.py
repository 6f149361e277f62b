"""A run's models averaged over its rounds: the noise of the last steps is smoothed out of what is
evaluated and exported. What is exchanged stays what it was.

    x̄_i ← β_t x̄_i + (1 − β_t) x_i      after every round, with β_t = min(β, (1+t)/(10+t))

Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim.
1992. The exponential form in private learning, with that warm-up: De, Berrada, Hayes, Smith, Balle,
"Unlocking high-accuracy differentially private image classification through scale", arXiv
2204.13650. It is made of models that are made of releases, so it costs no ε (post-processing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from node.algorithms import Algorithm
from node.maths.schedule import Schedule
from peer.message import Conversation, Peer
from peer.neighborhood import View


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    of: dict[str, object]
    """The algorithm's own state, by its fields."""
    average: Tensor
    """x̄_i [d]."""


class Averaged(Algorithm):
    """An algorithm in all but its parameters."""

    def __init__(self, algorithm: Algorithm, beta: float) -> None:
        self.config, self.me, self.gradients = algorithm.config, algorithm.me, algorithm.gradients
        self._algorithm, self._beta = algorithm, beta
        self._average = algorithm.parameters.clone()

    @property
    def state(self) -> Any:
        own = self._algorithm.state
        of = {field.name: getattr(own, field.name) for field in fields(own)}
        return State(of=of, average=self._average)

    @state.setter
    def state(self, state: State) -> None:
        self._algorithm.state = type(self._algorithm.state)(**state.of)
        self._average = state.average

    @property
    def checkpointable(self) -> bool:
        return self._algorithm.checkpointable

    @property
    def parameters(self) -> Tensor:
        """x̄_i."""
        return self._average

    @property
    def latest(self) -> Tensor:
        """x_i."""
        return self._algorithm.parameters

    def span(self, t: int) -> slice:
        return self._algorithm.span(t)

    def diagnostics(self) -> Mapping[str, float | Mapping[Peer, float]]:
        return self._algorithm.diagnostics()

    def round(self, t: int, view: View) -> Conversation:
        yield from self._algorithm.round(t, view)
        beta = min(self._beta, (1 + t) / (10 + t))
        self._average = torch.lerp(self._algorithm.parameters, self._average, beta)


def last_model(algorithm: Algorithm) -> Tensor:
    """x_i, which is exchanged, whatever is evaluated."""
    return algorithm.latest if isinstance(algorithm, Averaged) else algorithm.parameters


def averaged(algorithm: Algorithm) -> Algorithm:
    """The algorithm, with an average in place of its last model where its options ask for one."""
    options = algorithm.config
    if isinstance(options, Schedule) and options.average:
        return Averaged(algorithm, options.average)
    return algorithm
