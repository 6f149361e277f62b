"""A round in which neighbors' gradients weigh what they are worth: what ROSS and PDSL share.

ṽ_i = β v_i + Σ_{j∈N_i} π_ij g_{j→i} + λ x_i ;  x̃_i = x_i − γ ṽ_i           π: node.maths.coalitions
x_i ← Σ_j w_ij x̃_j ;  v_i ← Σ_j w_ij ṽ_j
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import Field
from torch import Tensor

from node.figures import Diagnostic
from node.maths.coalitions import (
    ShapleyConfig,
    ShapleyWeights,
    UtilityOracle,
    clip_relative_norms,
    mix_arguments,
    shapley_weights,
)
from node.maths.mixing import weighted_sum
from node.maths.momentum import momentum_step
from node.maths.schedule import Schedule, step_size
from peer.message import Answered, Peer, ask, mix
from peer.neighborhood import Neighborhood

DIAGNOSTICS = (
    Diagnostic("weight", "Weight of a neighbor's gradient, from its Shapley value."),
    Diagnostic("shapley", "Shapley value of a neighbor's gradient."),
)


class ShapleyRoundConfig(Schedule, ShapleyConfig):
    beta: float = Field(default=0.9, ge=0, lt=1)
    """β: momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """λ: λ·x is added to the weighted gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    x: Tensor
    """x_i, mixed [d]."""
    v: Tensor
    """v_i, mixed momentum [d]."""
    phi: Mapping[Peer, float] = field(default_factory=dict)
    """φ̄_ij, smoothed, of every player heard so far."""


def shapley_round(
    config: ShapleyRoundConfig,
    state: State,
    t: int,
    neighborhood: Neighborhood,
    gradients: Callable[[Tensor, int, Peer], Tensor],
    utility: UtilityOracle,
) -> Answered[tuple[State, ShapleyWeights]]:
    """Round t from `state`: the state after it, and what the neighbors weighed in it.

    Args:
        gradients: (x [d], t, to) -> a release of this node's gradient at x, flat float32 [d].
    """
    me, x, eta = neighborhood.me, state.x, step_size(t, config)
    answers = yield from ask("model", x, lambda j, x_j: gradients(x_j, t, j))
    cross = clip_relative_norms({**answers, me: gradients(x, t, me)}, me)
    weights = shapley_weights(
        config,
        utility,
        x,
        cross,
        me=me,
        weight=neighborhood.weight,
        before=state.phi,
        step=eta,
        seed=f"{me} {t}",
    )
    g = weighted_sum(weights.pi, cross).add_(x, alpha=config.weight_decay)
    x, v = momentum_step(x, state.v, g, beta=config.beta, lr=eta)
    rule, row = mix_arguments(config, weights.pi)
    if config.mix_momentum:
        x, v = yield from mix("state", (x, v), rule, weights=row)
    else:
        x = yield from mix("state", x, rule, weights=row)
    return State(x=x, v=v, phi=weights.smooth), weights


def diagnostics(weights: ShapleyWeights, me: Peer) -> Mapping[str, Mapping[Peer, float]]:
    """φ (of the last round alone) and π of every neighbor heard in it."""
    figures = {"shapley": weights.phi, "weight": weights.pi}
    return {
        name: {j: value for j, value in values.items() if j != me}
        for name, values in figures.items()
    }
