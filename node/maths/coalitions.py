"""What a neighbour's gradient is worth to a node's own model: the game of ROSS and PDSL, and the weights that follow.

    x_i(S) = x_i − γ·(1/|S|) Σ_{j∈S} g_{j→i} for a coalition S ⊆ N_i;  x_i(∅) = x_i
    v_i(S) = value of x_i(S) on the validation set
    π_ij   = φ'_ij w_ij / Σ_k φ'_ik w_ik                                       w_ij where the sum is 0

φ' is φ made non-negative. Pure functions; the values come from a `Judge`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from statistics import median_low
from typing import Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from node.config import MixSection, Section
from node.maths import shapley
from node.maths.mixing import weighted_sum
from node.maths.robust import Rule, Vectors
from node.maths.shapley import EXACT, Estimate
from peer.message import Peer

Kind: TypeAlias = Literal["accuracy", "neg_loss"]

ROUNDING = 1e-12
"""What summing may leave of a φ that is 0. Where nobody else is worth anything, it would get all the weight."""
REACH = 10.0
"""Times the own gradient's length that another one may have. Of honest ones 1.3 is usual; one in a thousand was longer
(classes apart, small batches), to whom it does little. At 30 a liar cost a tenth of the accuracy, at 100 a third."""


class Judge(Protocol):
    """The shared validation set, as an algorithm sees it."""

    def around(self, x: Tensor, moves: Tensor, kind: Kind) -> Callable[[Tensor], Sequence[float]]:
        """shares [m, k] -> what each of the m models x + shares[r]·moves is worth; x [d], moves [k, d]."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Of the mean loss on the validation set at x, flat float32 [d]."""
        ...

    def now(self) -> float:
        """Seconds of some monotonic clock, for budgets in seconds."""
        ...


class Coalitions(Section):
    """The part of an algorithm's Config that says how neighbours are valued."""

    value: Kind = "accuracy"
    """v: accuracy, or the negative mean loss, on the validation set."""
    normalisation: Literal["relu", "minmax", "softmax"] = "relu"
    """φ': max(φ, 0), or (φ − min φ)/(max φ − min φ), by which the least is always 0, or softmax(φ/temperature)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of softmax, in units of v."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ρ: φ̄ ← ρφ̄ + (1 − ρ)φ over rounds, before normalisation. Noise asks for it."""
    estimator: Literal["auto", "exact", "permutations", "svarm", "first_order"] = "auto"
    """auto: exact up to 8 players (a node and 7 neighbours), permutations above. svarm: stratified, some two to four
    times better for as many evaluations. first_order: one gradient on the validation set instead (neg_loss only)."""
    permutations: int = Field(default=10, ge=1)
    """R: orders per round; with `antithetic` a pair of them is an order and its reverse."""
    antithetic: bool = True
    """Whether every second order is the reverse of the one before."""
    truncation: float = Field(default=0.0, ge=0)
    """τ: an order ends where the rest is worth less than that, in units of v; 0: never."""
    evaluations: int | None = Field(default=None, ge=1)
    """svarm: coalitions per round; None: as many as the permutations would take."""
    seconds: float | None = Field(default=None, gt=0)
    """Time for the estimate of a round, after which no further sample is drawn. Runs then don't repeat bit for bit."""

    mix_momentum: bool = True
    """Whether v is mixed as x is; otherwise every node keeps its own."""
    mix_by: Literal["w", "trimmed_mean", "pi"] = "w"
    """How states are mixed: by W (or as [mix] says), by the trimmed mean whatever [mix] rule says, or by π."""

    def sampled(self, players: int) -> bool:
        """Is φ estimated from a sample, for so many players?"""
        return self.estimator in ("permutations", "svarm") or (self.estimator == "auto" and players > EXACT)


def too_poor(options: Coalitions, players: int) -> str:
    """What keeps these options from valuing so many players, in a sentence; empty if nothing does."""
    if options.estimator == "first_order" and options.value != "neg_loss":
        return 'estimator = "first_order" values the loss; set value = "neg_loss".'
    if options.estimator == "exact" and players > 2 * EXACT:
        return f'estimator = "exact" would value 2^{players} coalitions a round; take "svarm" or "permutations".'
    if options.estimator == "svarm" and (least := shapley.svarm_least(players)) > _budget(options, players):
        return f"evaluations = {_budget(options, players)} is too few for {players} players; svarm needs {least}."
    return ""


def within_reach(cross: Mapping[Peer, Tensor], me: Peer) -> dict[Peer, Tensor]:
    """The gradients [d] of those heard, me included, with those longer than REACH times the own one shortened to that.

    An accuracy says nothing of a length: by luck on a few examples anything is worth something, and one step along 1e16
    ends a model. Where the own gradient is zero (no budget is left) the others' lower median counts.
    """
    length = {j: float(torch.linalg.vector_norm(g, dtype=torch.float64)) for j, g in cross.items()}
    usual = length[me] or median_low([it for it in length.values() if it] or [0.0])
    return {j: g if length[j] <= REACH * usual else g * (REACH * usual / length[j]) for j, g in cross.items()}


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a round found of the players, the peers heard and me."""

    phi: Mapping[Peer, float]
    """φ_ij of this round alone."""
    smooth: Mapping[Peer, float]
    """φ̄_ij, of everybody heard so far."""
    pi: Mapping[Peer, float]
    """π_ij; they add up to 1."""


def weigh(
    options: Coalitions,
    judge: Judge,
    x: Tensor,
    cross: Mapping[Peer, Tensor],
    *,
    weight: Mapping[Peer, float],
    before: Mapping[Peer, float],
    step: float,
    seed: str,
) -> Weighed:
    """From the gradients that were heard to their weights.

    Args:
        cross: g_{j→i} [d] of those heard, me included. weight: row of W. before: φ̄ of the round before.
        step: γ, the step size. seed: of what is sampled; the same on every machine.
    """
    phi, _ = worth(options, judge, x, cross, step, seed)
    phi = {j: value if isfinite(value) else 0.0 for j, value in phi.items()}  # once in φ̄, NaN would never leave it
    smooth = smoothed(options, before, phi)
    return Weighed(phi, smooth, shares(options, {j: smooth[j] for j in phi}, weight))


def worth(
    options: Coalitions, judge: Judge, x: Tensor, cross: Mapping[Peer, Tensor], step: float, seed: str
) -> tuple[dict[Peer, float], Estimate]:
    """φ of every player, the peers of `cross` in sorted order, and the estimate it is from. Arguments as `weigh`'s."""
    peers, draw = sorted(cross), random.Random(seed)
    moves = torch.stack([cross[j] for j in peers])
    players = len(peers)
    if options.estimator == "first_order":
        slope = judge.gradient(x).to(moves.dtype)
        found = shapley.first_order([step * float(a) for a in moves @ slope])
        return dict(zip(peers, found.phi, strict=True)), found

    valued = judge.around(x, moves, options.value)

    def values(coalitions: Sequence[int]) -> Sequence[float]:
        shares = [[step * -(mask >> i & 1) / max(1, mask.bit_count()) for i in range(players)] for mask in coalitions]
        return valued(torch.tensor(shares, dtype=moves.dtype))

    end = None if options.seconds is None else judge.now() + options.seconds

    def enough() -> bool:
        return end is not None and judge.now() >= end

    if not options.sampled(players):
        found = shapley.exact(players, values)
    elif options.estimator == "svarm":
        found = shapley.svarm(players, values, budget=_budget(options, players), draw=draw, enough=enough)
    else:
        how = {"count": options.permutations, "antithetic": options.antithetic, "truncation": options.truncation}
        found = shapley.permutations(players, values, draw=draw, enough=enough, **how)  # type: ignore[arg-type]
    return dict(zip(peers, found.phi, strict=True)), found


def _budget(options: Coalitions, players: int) -> int:
    """Coalitions svarm may value: those asked for, or what the permutations would take at most."""
    return options.evaluations or options.permutations * (players - 1) + 2


def smoothed(options: Coalitions, before: Mapping[Peer, float], phi: Mapping[Peer, float]) -> dict[Peer, float]:
    """φ̄ after this round: ρφ̄ + (1 − ρ)φ of those heard (φ where there is no φ̄ yet), the others' as it was."""
    rho = options.smoothing
    return {**before, **{j: rho * before.get(j, value) + (1 - rho) * value for j, value in phi.items()}}


def shares(options: Coalitions, phi: Mapping[Peer, float], weight: Mapping[Peer, float]) -> dict[Peer, float]:
    """π_ij of the peers of `phi`; they add up to 1.

    Args:
        weight: row of W; w of the peers of `phi` is looked at, and made to add up to 1 where all φ'w are 0.
    """
    raised = {j: value * weight[j] for j, value in _non_negative(options, phi).items()}
    total = sum(raised[j] for j in sorted(raised))
    if total <= 0:
        raised, total = {j: weight[j] for j in phi}, sum(weight[j] for j in sorted(phi))
    return {j: raised[j] / total for j in raised}


def _non_negative(options: Coalitions, phi: Mapping[Peer, float]) -> dict[Peer, float]:
    """φ'."""
    least, most = min(phi.values()), max(phi.values())
    match options.normalisation:
        case "relu":
            return {j: value if value > ROUNDING else 0.0 for j, value in phi.items()}
        case "minmax":
            return {j: (value - least) / (most - least) if most - least > ROUNDING else 0.0 for j, value in phi.items()}
        case "softmax":
            return {j: exp((value - most) / options.temperature) for j, value in phi.items()}


def mixing_rule(options: Coalitions, pi: Mapping[Peer, float]) -> str | Rule:
    """What `mix_by` means for a Mix."""

    def by_pi(weight: Mapping[Peer, float], vectors: Vectors, me: Peer, how: MixSection) -> Tensor:
        found = {j: pi.get(j, 0.0) for j in weight}
        total = sum(found[j] for j in sorted(found))
        if not total:
            return vectors[me].clone()
        return weighted_sum({j: share / total for j, share in found.items()}, vectors)

    return by_pi if options.mix_by == "pi" else {"w": "mean"}.get(options.mix_by, options.mix_by)
