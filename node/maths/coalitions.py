"""What a neighbor's gradient is worth to a node's own model: the game of ROSS and PDSL.

    x_i(S) = x_i − γ·(1/|S|) Σ_{j∈S} g_{j→i} for a coalition S ⊆ N_i;  x_i(∅) = x_i
    v_i(S) = value of x_i(S) on the validation set
    π_ij   = φ'_ij w_ij / Σ_k φ'_ik w_ik                        w_ij where the sum is 0

φ' is φ made non-negative. Pure functions; the values come from a `UtilityOracle`.

Deviation: a neighbor that answers with zeros is no null player of this game. By joining it shortens
the others' step, and is worth something wherever that step hurts: a free rider had .40 to .93 of
the weight so, one that says the model itself up to .81. So every player is compared with staying
put, that is, with a zero gradient in its place:

    G_ij = max{ v_i(x_i − γ g_{j→i}) − v_i(x_i),
                v_i(x_i(N_i)) − v_i(x_i(N_i) + (γ/|N_i|) g_{j→i}) }

A neighbor that adds nothing to that has w_ij at most, and what it had more goes to those who do, or
else to the own gradient (`null_players` = "paper": it does not). Zeros and echoes of the model
don't play at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import exp, isfinite
from statistics import median_low
from typing import Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from node.config import Section
from node.maths import shapley
from node.maths.cosine import cosine
from node.maths.shapley import EXACT, Estimate
from peer.message import Peer

Kind: TypeAlias = Literal["accuracy", "neg_loss"]

ROUNDING = 1e-12
"""Values below this are rounding error of a zero φ. Where nobody else is worth anything, it would
get all the weight."""
NOTHING = 0.01
"""Share of the largest φ up to which G counts as nothing: a thousandth of an honest gradient is
like zeros."""
ECHO = 0.99
"""Cosine with the model itself beyond which a gradient carries no information about data: a step
along it only scales the model."""
MAX_NORM_RATIO = 10.0
"""Times the own gradient's length that another one may have. Of honest ones 1.3 is usual; one in a
thousand was longer (classes apart, small batches), to whom it does little. At 30 a liar cost a
tenth of the accuracy, at 100 a third."""


class UtilityOracle(Protocol):
    """The shared validation set, as an algorithm sees it."""

    def around(self, x: Tensor, moves: Tensor, kind: Kind) -> Callable[[Tensor], Sequence[float]]:
        """shares [m, k] -> what each of the m models x + shares[r]·moves is worth; x [d], moves [k,
        d].
        """
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Of the mean loss on the validation set at x, flat float32 [d]."""
        ...

    def now(self) -> float:
        """Seconds of some monotonic clock, for budgets in seconds."""
        ...


class ShapleyConfig(Section):
    """The part of an algorithm's Config that says how neighbors are valued."""

    value: Kind = "accuracy"
    """v: accuracy, or the negative mean loss, on the validation set."""
    normalization: Literal["relu", "minmax", "softmax"] = "relu"
    """φ': max(φ, 0), or (φ − min φ)/(max φ − min φ), so that the smallest is always 0, or
    softmax(φ/temperature).
    """
    null_players: Literal["capped", "paper"] = "capped"
    """capped: a player that adds nothing over standing still weighs w at most, zeros and echoes
    nothing. paper: as φ' says.
    """
    temperature: float = Field(default=1.0, gt=0)
    """Of softmax, in units of v."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ρ: φ̄ ← ρφ̄ + (1 − ρ)φ over rounds, before normalization. Noise asks for it."""
    estimator: Literal["auto", "exact", "permutations", "svarm", "first_order"] = "auto"
    """auto: exact up to 8 players (a node and 7 neighbors), permutations above. svarm: stratified,
    about two to four times better for equally many evaluations. first_order: one gradient on the
    validation set instead (neg_loss only)."""
    permutations: int = Field(default=10, ge=1)
    """R: orders per round; with `antithetic` a pair of them is an order and its reverse."""
    antithetic: bool = True
    """Every second order is the reverse of the one before."""
    truncation: float = Field(default=0.0, ge=0)
    """τ: an order ends when the rest is worth less than this, in units of v; 0: never."""
    evaluations: int | None = Field(default=None, ge=1)
    """svarm: coalitions per round; None: as many as the permutations would take."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds per round after which the estimate draws no further sample. Runs then don't repeat
    bit for bit.
    """

    mix_momentum: bool = True
    """Whether v is mixed as x is; otherwise every node keeps its own."""
    mix_by: Literal["w", "trimmed_mean", "pi"] = "w"
    """How states are mixed: by W (or as [mix] says), by the trimmed mean whatever [mix] rule says,
    or by π.
    """

    def sampled(self, players: int) -> bool:
        """Is φ estimated from a sample, for so many players?"""
        return self.estimator in ("permutations", "svarm") or (
            self.estimator == "auto" and players > EXACT
        )


def unsupported_reason(options: ShapleyConfig, players: int) -> str:
    """What keeps these options from valuing so many players, in a sentence; empty if nothing
    does.
    """
    if options.estimator == "first_order" and options.value != "neg_loss":
        return 'estimator = "first_order" values the loss; set value = "neg_loss".'
    if options.estimator == "exact" and players > 2 * EXACT:
        return (
            f'estimator = "exact" would value 2^{players} coalitions a round; take "svarm" or '
            '"permutations".'
        )
    if options.estimator == "svarm":
        budget, least = _budget(options, players), shapley.svarm_least(players)
        if budget < least:
            return f"evaluations = {budget} is too few for {players} players; svarm needs {least}."
    return ""


def clip_relative_norms(cross: Mapping[Peer, Tensor], me: Peer) -> dict[Peer, Tensor]:
    """The gradients [d] of those heard, me included; those longer than MAX_NORM_RATIO times the own
    one are shortened to that.

    An accuracy says nothing of a length: by luck on a few examples anything is worth something, and
    one step along 1e16 ends a model. Where the own gradient is zero (no budget is left) the others'
    lower median counts.
    """
    length = {j: float(torch.linalg.vector_norm(g, dtype=torch.float64)) for j, g in cross.items()}
    usual = length[me] or median_low([value for value in length.values() if value] or [0.0])
    most = MAX_NORM_RATIO * usual
    return {j: g if length[j] <= most else g * (most / length[j]) for j, g in cross.items()}


@dataclass(frozen=True, slots=True)
class ShapleyWeights:
    """What a round found of the players, the peers heard and me."""

    phi: Mapping[Peer, float]
    """φ_ij of this round alone."""
    smooth: Mapping[Peer, float]
    """φ̄_ij, of everybody heard so far."""
    pi: Mapping[Peer, float]
    """π_ij; they add up to 1."""


def shapley_weights(
    options: ShapleyConfig,
    utility: UtilityOracle,
    x: Tensor,
    cross: Mapping[Peer, Tensor],
    *,
    me: Peer,
    weight: Mapping[Peer, float],
    before: Mapping[Peer, float],
    step: float,
    seed: str,
) -> ShapleyWeights:
    """From the gradients that were heard to their weights.

    Args:
        cross: g_{j→i} [d] of those heard, me included.
        weight: row of W.
        before: φ̄ of the round before.
        step: γ, the step size.
        seed: of what is sampled; the same on every machine.
    """
    capping = options.null_players == "capped"
    players = {j: g for j, g in cross.items() if not (capping and adds_nothing(g, x))} or cross
    values, _ = shapley_values(options, utility, x, players, step, seed)
    # once in φ̄, NaN would never leave it
    values = {j: value if isfinite(value) else 0.0 for j, value in values.items()}
    phi = {j: values.get(j, 0.0) for j in cross}
    smooth = smoothed(options, before, phi)
    pi = aggregation_weights(options, {j: smooth[j] for j in players}, weight)
    if capping:
        least = NOTHING * max(0.0, *values.values())
        gain = gains(options, utility, x, players, step)
        pi = capped(pi, weight, {j for j in players if gain[j] > least}, me)
    return ShapleyWeights(phi, smooth, {j: pi.get(j, 0.0) for j in cross})


def adds_nothing(g: Tensor, x: Tensor) -> bool:
    """Is the gradient g [d] zero, or an echo of the model x [d]?"""
    return not bool(g.any()) or abs(cosine(g, x)) > ECHO


def gains(
    options: ShapleyConfig,
    utility: UtilityOracle,
    x: Tensor,
    cross: Mapping[Peer, Tensor],
    step: float,
) -> dict[Peer, float]:
    """G of every player: what it adds to staying put, alone or beside all others. Arguments as
    `shapley_weights`'s.
    """
    peers, k = sorted(cross), len(cross)
    moves = torch.stack([cross[j] for j in peers])
    if options.estimator == "first_order":
        slopes = (moves @ utility.gradient(x).to(moves.dtype) * step).tolist()
        return {j: max(slope, slope / k) for j, slope in zip(peers, slopes, strict=True)}
    alone = torch.eye(k, dtype=moves.dtype)
    shares = torch.cat(
        [torch.zeros_like(alone[:1]), torch.ones_like(alone[:1]) / k, alone, (1 - alone) / k]
    )
    nobody, everybody, *values = utility.around(x, moves, options.value)(-step * shares)
    return {j: max(values[i] - nobody, everybody - values[k + i]) for i, j in enumerate(peers)}


def capped(
    pi: Mapping[Peer, float], weight: Mapping[Peer, float], add: Set[Peer], me: Peer
) -> dict[Peer, float]:
    """π with the neighbors outside of `add`, who add nothing, held to their share of w (over the
    peers of π). What they had more goes to `add` in proportion to π, and where these have nothing
    to the own gradient."""
    total = sum(weight[j] for j in sorted(pi))
    share = {j: weight[j] / total for j in pi}
    held = {j: min(pi[j], share[j]) for j in pi if j not in add and j != me}
    receivers = {j: pi[j] for j in sorted(pi) if j in add and pi[j] > 0}
    if not receivers and me in pi:
        receivers = {me: 1.0}
    if not receivers:
        return share
    surplus = sum(pi[j] - held[j] for j in sorted(held)) / sum(receivers.values())
    return {j: held.get(j, pi[j]) + surplus * receivers.get(j, 0.0) for j in pi}


def shapley_values(
    options: ShapleyConfig,
    utility: UtilityOracle,
    x: Tensor,
    cross: Mapping[Peer, Tensor],
    step: float,
    seed: str,
) -> tuple[dict[Peer, float], Estimate]:
    """φ of every player, the peers of `cross` in sorted order, and the estimate it is from.
    Arguments as `shapley_weights`'s.
    """
    peers, draw = sorted(cross), random.Random(seed)
    moves = torch.stack([cross[j] for j in peers])
    players = len(peers)
    if options.estimator == "first_order":
        gradient = utility.gradient(x).to(moves.dtype)
        estimate = shapley.first_order([step * float(a) for a in moves @ gradient])
        return dict(zip(peers, estimate.phi, strict=True)), estimate

    value = utility.around(x, moves, options.value)

    def values(coalitions: Sequence[int]) -> Sequence[float]:
        shares = [
            [step * -(mask >> i & 1) / max(1, mask.bit_count()) for i in range(players)]
            for mask in coalitions
        ]
        return value(torch.tensor(shares, dtype=moves.dtype))

    end = None if options.seconds is None else utility.now() + options.seconds

    def enough() -> bool:
        return end is not None and utility.now() >= end

    if not options.sampled(players):
        estimate = shapley.exact(players, values)
    elif options.estimator == "svarm":
        estimate = shapley.svarm(
            players, values, budget=_budget(options, players), draw=draw, enough=enough
        )
    else:
        estimate = shapley.permutations(
            players,
            values,
            count=options.permutations,
            draw=draw,
            antithetic=options.antithetic,
            truncation=options.truncation,
            enough=enough,
        )
    return dict(zip(peers, estimate.phi, strict=True)), estimate


def _budget(options: ShapleyConfig, players: int) -> int:
    """Coalitions svarm may value: those asked for, or what the permutations would take at most."""
    return options.evaluations or options.permutations * (players - 1) + 2


def smoothed(
    options: ShapleyConfig, before: Mapping[Peer, float], phi: Mapping[Peer, float]
) -> dict[Peer, float]:
    """φ̄ after this round: ρφ̄ + (1 − ρ)φ of those heard (φ where there is no φ̄ yet), the others'
    as it was.
    """
    rho = options.smoothing
    heard = {j: rho * before.get(j, value) + (1 - rho) * value for j, value in phi.items()}
    return {**before, **heard}


def aggregation_weights(
    options: ShapleyConfig, phi: Mapping[Peer, float], weight: Mapping[Peer, float]
) -> dict[Peer, float]:
    """π_ij of the peers of `phi`; they add up to 1.

    Args:
        weight: row of W; of the peers of `phi` only, and made to add up to 1 where all φ'w are 0.
    """
    raised = {j: value * weight[j] for j, value in _non_negative(options, phi).items()}
    total = sum(raised[j] for j in sorted(raised))
    if total <= 0:
        raised, total = {j: weight[j] for j in phi}, sum(weight[j] for j in sorted(phi))
    return {j: raised[j] / total for j in raised}


def _non_negative(options: ShapleyConfig, phi: Mapping[Peer, float]) -> dict[Peer, float]:
    """φ'."""
    least, most = min(phi.values()), max(phi.values())
    match options.normalization:
        case "relu":
            return {j: value if value > ROUNDING else 0.0 for j, value in phi.items()}
        case "minmax":
            return {
                j: (value - least) / (most - least) if most - least > ROUNDING else 0.0
                for j, value in phi.items()
            }
        case "softmax":
            return {j: exp((value - most) / options.temperature) for j, value in phi.items()}


def mix_arguments(
    options: ShapleyConfig, pi: Mapping[Peer, float]
) -> tuple[str, Mapping[Peer, float] | None]:
    """(rule, weights) of the Mix that `mix_by` means."""
    if options.mix_by == "pi":
        return "mean", pi
    return {"w": "mean"}.get(options.mix_by, options.mix_by), None
