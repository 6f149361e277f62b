"""GRPO, every node for itself after a supervised warm-up together, with which FGRPO is compared.
Shao et al., "DeepSeekMath", arXiv 2402.03300.

    θ_i ← Adam of −∇J(θ_i), E times a round; J: `node.maths.grpo`, without a critic

Deviations
    * TRL's defaults where the paper differs: the loss is normalized by the tokens of a batch (dapo),
      one step a batch, no KL.
Not covered
    * No differential privacy; but nothing is said after the warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from node.algorithms import Algorithm, Capability, Resources
from node.maths.grpo_rounds import (
    DIAGNOSTICS,
    GrpoRunConfig,
    LocalState,
    begin,
    local_steps,
    warm_up,
)
from node.maths.policy import Policy
from peer.message import Conversation
from peer.neighborhood import View


class Grpo(Algorithm):
    Config = GrpoRunConfig
    NEEDS = frozenset({Capability.POLICY})
    PRIVATE = False
    DIAGNOSTICS = DIAGNOSTICS
    config: GrpoRunConfig
    state: LocalState
    checkpointable = True

    def __init__(self, config: GrpoRunConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        assert resources.policy is not None
        self.policy: Policy = resources.policy
        self.state = LocalState.at(resources.start)
        self._figures: Mapping[str, float] = {}

    def diagnostics(self) -> Mapping[str, float]:
        return self._figures

    def round(self, t: int, view: View) -> Conversation:
        if t < self.config.warmup.rounds:
            self.checkpointable = False
            self.state = yield from warm_up(
                self.config, self.state, lambda x: self.gradients(x, t, self.me)
            )
            self.checkpointable = True
        else:
            state = begin(self.config, self.state)
            state, x, self._figures = local_steps(self.config, self.policy, t, state)
            self.state = replace(state, x=x)
