"""ROSS: robust decentralized stochastic learning, where a neighbor's gradient weighs what it is
worth on a validation set, its Shapley value.

Wang, Yuan, Li, Duan, arXiv 2411.00365v2 (13 January 2026). g_{j→i} is j's gradient at i's model
x_i; N_i contains i.

    φ_ij = Shapley value of j in the game v_i(S) = value of x_i − γ·mean_{j∈S} g_{j→i} on the validation set
    π_ij = φ'_ij w_ij / Σ_k φ'_ik w_ik                                      (node.maths.coalitions)
    ṽ_i  = β v_i + Σ_{j∈N_i} π_ij g_{j→i} ;  x̃_i = x_i − γ ṽ_i
    x_i ← Σ_j w_ij x̃_j ;  v_i ← Σ_j w_ij ṽ_j

Deviations
    * Weight decay λ x_i is added to the weighted gradient.
    * A gradient more than ten times as long as the own one is shortened to that, before it is
      valued.
    * In mode strict every gradient is noised by the privacy gate, as in PDSL, which is the name for that.
    * A neighbor that adds nothing to staying put weighs w_ij at most, one that answers with zeros
      or with x_i itself nothing (node.maths.coalitions). By φ' alone they weigh most where all
      others hurt. null_players = "paper": so.
Reconstructions
    * The paper's text was not at hand. φ' is max(φ, 0) by default: with min-max, the likeliest
      reading, the weakest neighbor always weighs nothing, also an honest one. All φ' zero: π = w.
    * v is the accuracy by default; both x and v are mixed (mix_momentum); validation set as in
      [validation].
    * A neighbor that is not heard is not a player, and w is renormalized over those heard where π
      falls back to it.
Not covered
    * Shapley values filter gradients, not states: a neighbor that lies in its state still enters
      with w_ij. mix_by "trimmed_mean" tolerates some of it; "pi" is no defense, since φ never sees the
      state.
    * A neighbor that knows the validation set can please it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from node.algorithms import Algorithm, Capability, Resources
from node.maths.coalitions import ShapleyWeights
from node.maths.shapley_rounds import (
    DIAGNOSTICS,
    ShapleyRoundConfig,
    State,
    diagnostics,
    shapley_round,
)
from peer.message import Conversation, Peer
from peer.neighborhood import View


class RossConfig(ShapleyRoundConfig):
    """All options are those of ShapleyRoundConfig."""


class Ross(Algorithm):
    Config = RossConfig
    DIAGNOSTICS = DIAGNOSTICS
    NEEDS = frozenset({Capability.VALIDATION})
    ANSWERS = True
    config: RossConfig
    state: State

    def __init__(self, config: RossConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        assert resources.utility is not None
        self.utility = resources.utility
        self.state = State(x=resources.start.clone(), v=torch.zeros_like(resources.start))
        self.weights = ShapleyWeights({}, {}, {})

    def round(self, t: int, view: View) -> Conversation:
        self.state, self.weights = yield from shapley_round(
            self.config, self.state, t, view.neighborhood, self.gradients, self.utility
        )

    def diagnostics(self) -> Mapping[str, Mapping[Peer, float]]:
        return diagnostics(self.weights, self.me)
