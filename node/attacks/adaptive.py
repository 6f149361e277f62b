"""Lies made of what was heard. In the first round, when nothing was, the truth stands for it."""

from __future__ import annotations

import statistics
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.attacks.byzantine import MessageAttack, MessageAttackConfig, OutgoingVector
from node.maths.mixing import weighted_sum
from node.maths.robust import MEAN, median

OUTLIER = 3.0
"""Times the median distance from the middle: wide enough for honest nodes whose data differ."""


class EchoConfig(MessageAttackConfig):
    of: Literal["step", "value"] = "value"
    """Parameters in a Mix: repeat the neighbor's step since the last mixing, or its value."""


class Echo(MessageAttack):
    """An asker gets its own model back as a gradient; everybody gets what the first neighbor said a
    round ago (the mimic attack of Karimireddy, He, Jaggi, arXiv 2006.09365).

    Knows: the model it is asked about; what its first neighbor mixed in the round before.
    Deviations: the paper's attackers all copy one honest node, in the same round; these know
    nothing of each other.
    """

    Config = EchoConfig
    listens = True
    config: EchoConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        if vector.question is not None:
            return vector.question
        return next(iter(vector.heard.values()), vector.truth)


class AlieConfig(MessageAttackConfig):
    z: float = 1.5
    """Standard deviations from the mean. Of n with f attackers, the paper's largest that hides is
    Φ⁻¹((n − f − s)/(n − f)), s = ⌊n/2 + 1⌋ − f: none at all with 10 and 2.
    """


class Alie(MessageAttack):
    """A little is enough: μ − z·σ per coordinate, among the honest values but always on one side.
    Baruch, Baruch, Goldberg, arXiv 1902.06635.

    Knows: μ and σ over its own truth and what each neighbor said in the same place the round
    before.
    Deviations: the paper's attackers share what they know; and μ, σ are of the same round.
    """

    Config = AlieConfig
    listens = True
    config: AlieConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        everybody = _everybody(vector)
        return everybody.mean(0) - self.config.z * everybody.std(0, correction=0)


class InnerProductConfig(MessageAttackConfig):
    epsilon: float = Field(default=0.5, ge=0)
    """ε: the mean is multiplied by −ε. Above (n − f)/f it reverses a plain mean of n with f
    attackers.
    """


class InnerProduct(MessageAttack):
    """Inner-product manipulation: −ε·μ, so that the average and the true gradient disagree.
    Xie, Koyejo, Gupta, "Fall of empires", arXiv 1903.03936.

    Knows: μ over its own truth and what each neighbor said in the same place the round before.
    Deviations: as of Alie.
    """

    Config = InnerProductConfig
    listens = True
    config: InnerProductConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        return -self.config.epsilon * _everybody(vector).mean(0)


class DissensusConfig(MessageAttackConfig):
    epsilon: float = Field(default=1.5, ge=0)
    """ε: 1 keeps the victim where it is, more drives it away from its neighbors."""


class Dissensus(MessageAttack):
    """x_i − ε·Σ_k w_ik (x_k − x_i)/w_ib for a victim i: b pulls it away as far as its neighbors k
    pull it back. He, Karimireddy, Jaggi, "Byzantine-robust decentralized learning via
    ClippedGossip", arXiv 2202.01545, definition of the dissensus attack.

    Knows: what each neighbor mixed in the round before, and its own row of W.
    Deviations: the paper's b says something else to every neighbor, each its victim; here all hear
    the same, made for one victim, the neighbor farthest from the others. The victim's neighbors and
    weights are taken to be b's own. A node farther from the median of all than OUTLIER times what
    half of them are is taken for another liar and left out: two that amplify each other would soon
    be beyond all numbers. Nothing but the parameters is lied about.
    """

    Config = DissensusConfig
    listens = True
    config: DissensusConfig

    def lie(self, vector: OutgoingVector) -> Tensor:
        if vector.kind != "state" or not vector.parameters or not vector.heard:
            return vector.truth
        middle = median(dict.fromkeys(vector.heard, 1.0), vector.heard, vector.me, MEAN)
        apart = {peer: float((x - middle).norm()) for peer, x in vector.heard.items()}
        usual = OUTLIER * statistics.median(apart.values())
        heard = {peer: x for peer, x in vector.heard.items() if apart[peer] <= usual}
        if not heard:  # nothing that was heard is a number
            return vector.truth
        x = heard[max(heard, key=lambda peer: apart[peer])]
        w = {peer: vector.weight[peer] / vector.weight[vector.me] for peer in heard}
        return x - self.config.epsilon * weighted_sum(
            w, {peer: x_k - x for peer, x_k in heard.items()}
        )


def _everybody(vector: OutgoingVector) -> Tensor:
    """[n, d]: what was heard, and the truth."""
    return torch.stack([*vector.heard.values(), vector.truth])
