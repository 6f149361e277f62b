"""PDSL: privacy-preserved decentralized stochastic learning, which is ROSS on noised gradients.

Wang, Yuan, Wang, Li, arXiv 2503.23726 (31 March 2025). As ROSS on gradients that are clipped and
noised: g̈_{j→i} is j's release for i at i's model x_i, the own one included; (1) and (2), clipping
and noise, belong to the privacy gate.

    φ_ij = Shapley value of j in the game v_i(S) = value of x_i − γ·mean_{j∈S} g̈_{j→i} on the
    validation set, by Monte Carlo
    π_ij = φ'_ij w_ij / Σ_k φ'_ik w_ik                                      (node.maths.coalitions)
    ṽ_i  = β v_i + Σ_{j∈N_i} π_ij g̈_{j→i} ;  x̃_i = x_i − γ ṽ_i
    x_i ← Σ_j w_ij x̃_j ;  v_i ← Σ_j w_ij ṽ_j

Deviations
    * Weight decay λ x_i is added to the weighted gradient.
    * A gradient more than ten times as long as the own one is shortened to that, before it is
      valued.
    * A neighbor that adds nothing to staying put weighs w_ij at most, one that answers with zeros
      or with x_i itself nothing (node.maths.coalitions). By φ' alone they weigh most where all
      others hurt. null_players = "paper": so.
Reconstructions
    * The paper's text was not at hand. Orders are antithetic pairs, R = 10 a round. φ' is max(φ, 0)
      by default (min-max gives the weakest neighbor nothing, also an honest one); φ is smoothed
      over rounds (ρ = 0.9), since of noised gradients one round tells little. v is the accuracy;
      both x and v are mixed; all φ' zero: π = w.
    * A neighbor that is not heard is not a player, and w is renormalized over those heard where π
      falls back to it.
Not covered
    * The validation set has to be public: x̃_i tells of it, and ε says nothing of that
      (validation.public).
    * Shapley values filter gradients, not states (mix_by), and cost no privacy: they are
      post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

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


class PdslConfig(ShapleyRoundConfig):
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """ρ: φ̄ ← ρφ̄ + (1 − ρ)φ over rounds, before normalization."""
    estimator: Literal["auto", "exact", "permutations", "svarm", "first_order"] = "permutations"
    """permutations: Monte Carlo, as the paper. auto: exact up to 8 players, permutations above.
    svarm: stratified, some two to four times better for as many evaluations. first_order: one
    gradient on the validation set (neg_loss).
    """


class Pdsl(Algorithm):
    Config = PdslConfig
    DIAGNOSTICS = DIAGNOSTICS
    NEEDS = frozenset({Capability.VALIDATION})
    ANSWERS = True
    config: PdslConfig
    state: State

    def __init__(self, config: PdslConfig, resources: Resources) -> None:
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
