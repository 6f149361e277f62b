"""Shapley values of a game of k players, exactly or from a sample of its coalitions.

    φ_i = Σ_{S ⊆ K∖{i}} |S|!(k−|S|−1)!/k! · [v(S∪{i}) − v(S)]                    Shapley, 1953

exact          all 2^k coalitions
permutations   the mean marginal contribution along random orders of the players (Castro, Gómez,
               Tejada 2009), antithetic (an order and its reverse), truncated where the rest adds
               less than τ (TMC of Ghorbani, Zou, arXiv 1904.02868)
svarm          stratified by player and size: each coalition's value serves all k players at once
               (Stratified SVARM+ of Kolpaczki, Bengs, Muschalik, Hüllermeier, arXiv 2302.00736)
first_order    in closed form, for games whose v(S) is v(∅) + the mean of a number per player

A coalition is a bitmask: bit i stands for player i. `values` is asked for several coalitions at
once and never twice for the same one; it is what costs. All estimates share v(K) − v(∅) among the
players without remainder (efficiency), up to 1e-12·max(1, |v|); that of svarm by spreading the
remainder equally.

Deviations
    * svarm measures the strata of the empty, the single, the all-but-one and the full coalitions
      exactly, as its authors do, and draws sizes in between uniformly, not by their harmonic
      weights.
    * A truncated order shares the remainder equally among the remaining players, instead of giving
      them nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb, inf, sqrt
from statistics import fmean, stdev
from typing import TypeAlias

Values: TypeAlias = Callable[[Sequence[int]], Sequence[float]]
"""Coalitions (bitmasks) -> what each is worth."""
Enough: TypeAlias = Callable[[], bool]
"""Asked between samples: is the time up? One sample is always made."""

EXACT = 8
"""Players up to which all coalitions are valued: 256."""


@dataclass(frozen=True, slots=True)
class Estimate:
    phi: tuple[float, ...]
    """φ of every player."""
    error: tuple[float, ...]
    """Standard error of each: 0 where exact, infinite where one sample tells nothing of it."""
    evaluations: int
    """Coalitions that were valued."""


class Game:
    """Remembers what each coalition is worth."""

    def __init__(self, players: int, values: Values) -> None:
        self.players = players
        self.full = (1 << players) - 1
        """The coalition of all players."""
        self._values = values
        self._known: dict[int, float] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def __call__(self, *coalitions: int) -> list[float]:
        """v of each; what is not known yet is asked for together."""
        new = [mask for mask in dict.fromkeys(coalitions) if mask not in self._known]
        if new:
            self._known.update(zip(new, self._values(new), strict=True))
        return [self._known[mask] for mask in coalitions]


def exact(players: int, values: Values) -> Estimate:
    """From all 2^k coalitions."""
    game = Game(players, values)
    shapley_values = game(*range(game.full + 1))
    phi = [0.0] * players
    for mask, v in enumerate(shapley_values):
        size = mask.bit_count()
        joined = 1 / (players * comb(players - 1, size - 1)) if size else 0.0
        left = 1 / (players * comb(players - 1, size)) if size < players else 0.0
        for i in range(players):
            phi[i] += joined * v if mask >> i & 1 else -left * v
    return Estimate(tuple(phi), (0.0,) * players, game.evaluations)


def permutations(
    players: int,
    values: Values,
    *,
    count: int,
    draw: random.Random,
    antithetic: bool = True,
    truncation: float = 0.0,
    enough: Enough = lambda: False,
) -> Estimate:
    """The mean over `count` random orders; with `antithetic` every second one is the reverse of the
    one before.

    Args:
        truncation: τ; an order ends where |v(K) − v(those so far)| < τ. 0: never.
    """
    game = Game(players, values)
    game(0, game.full)
    samples: list[list[float]] = []
    for order in _orders(players, count, draw, antithetic):
        samples.append(_marginals(game, order, truncation))
        if enough():
            break
    size = 2 if antithetic else 1  # an order and its reverse are one sample: they depend
    groups = [samples[k : k + size] for k in range(0, len(samples), size)]
    columns = [[fmean(phi[i] for phi in group) for group in groups] for i in range(players)]
    phi = tuple(fmean(sample[i] for sample in samples) for i in range(players))
    return Estimate(phi, tuple(_error(column) for column in columns), game.evaluations)


def _orders(players: int, count: int, draw: random.Random, antithetic: bool) -> Iterator[list[int]]:
    order: list[int] = []
    for k in range(count):
        order = order[::-1] if antithetic and k % 2 else draw.sample(range(players), players)
        yield order


def _marginals(game: Game, order: Sequence[int], truncation: float) -> list[float]:
    """What each player adds when they join in this order."""
    phi, mask = [0.0] * game.players, 0
    before, everybody = game(0, game.full)
    if not truncation:
        game(*accumulate(1 << i for i in order))  # all at once
    for place, i in enumerate(order):
        if abs(everybody - before) < truncation:
            for j in order[place:]:
                phi[j] = (everybody - before) / (game.players - place)
            break
        mask |= 1 << i
        (after,) = game(mask)
        phi[i], before = after - before, after
    return phi


def svarm(
    players: int,
    values: Values,
    *,
    budget: int,
    draw: random.Random,
    enough: Enough = lambda: False,
) -> Estimate:
    """From at most `budget` coalitions (no fewer than `svarm_least` are used)."""
    game = Game(players, values)
    strata = _Strata(players)
    strata.add(
        game, [mask for mask in range(game.full + 1) if not 1 < mask.bit_count() < players - 1]
    )
    strata.add(game, _warm_up(players, draw))
    inner = range(2, players - 1)
    while inner and game.evaluations < min(budget, 1 << players) and not enough():
        size = draw.choice(inner)
        strata.add(game, [sum(1 << i for i in draw.sample(range(players), size))])
    empty, everybody = game(0, game.full)
    phi, error = strata.combined(empty)
    remainder = (everybody - empty - sum(phi)) / players
    return Estimate(tuple(value + remainder for value in phi), tuple(error), game.evaluations)


def svarm_least(players: int) -> int:
    """Coalitions that svarm values at least, an upper bound: every stratum needs one."""
    border = 2 * players + 2
    return border + sum(
        -(-players // size) + -(-players // (players - size)) for size in range(2, players - 1)
    )


class _Strata:
    """Per player and size: the values of coalitions with the player, and of those without."""

    def __init__(self, players: int) -> None:
        self.players = players
        self._with = [[list[float]() for _ in range(players + 1)] for _ in range(players)]
        self._without = [[list[float]() for _ in range(players + 1)] for _ in range(players)]
        self._seen: set[int] = set()

    def add(self, game: Game, coalitions: Sequence[int]) -> None:
        """Coalitions are drawn without replacement: one that was seen says nothing new."""
        new = [mask for mask in dict.fromkeys(coalitions) if mask not in self._seen]
        self._seen.update(new)
        for mask, v in zip(new, game(*new), strict=True):
            size = mask.bit_count()
            for i in range(self.players):
                (self._with if mask >> i & 1 else self._without)[i][size].append(v)

    def combined(self, empty: float) -> tuple[list[float], list[float]]:
        """(φ, standard errors): φ_i is the mean over sizes s of mean v(with i, s + 1) − mean
        v(without i, s).
        """
        phi, error, k = [], [], self.players
        for i in range(k):
            joined = [self._with[i][size + 1] for size in range(k)]
            left = [self._without[i][size] for size in range(k)]
            phi.append(fmean(fmean(a) - fmean(b) for a, b in zip(joined, left, strict=True)))
            spread = [_stratum(a, comb(k - 1, size)) for size, a in enumerate(joined)]
            spread += [_stratum(b, comb(k - 1, size)) for size, b in enumerate(left)]
            error.append(sqrt(sum(spread)) / k)
        return phi, error


def _stratum(sample: Sequence[float], population: int) -> float:
    """Variance of the mean of a stratum: 0 where all of it was seen, infinite where one value
    stands for many.
    """
    if len(sample) >= population:
        return 0.0
    if len(sample) < 2:
        return inf
    return stdev(sample) ** 2 / len(sample) * (1 - len(sample) / population)


def _warm_up(players: int, draw: random.Random) -> list[int]:
    """Coalitions that give every stratum between the borders a value: the players in blocks of each
    size, and what such blocks leave."""
    coalitions = []
    for size in range(2, players - 1):
        coalitions += [sum(1 << i for i in block) for block in _blocks(players, size, draw)]
        coalitions += [
            (1 << players) - 1 - sum(1 << i for i in block)
            for block in _blocks(players, players - size, draw)
        ]
    return coalitions


def _blocks(players: int, size: int, draw: random.Random) -> list[list[int]]:
    """The players in random order, in blocks of `size`; the last one is filled up with others."""
    order = draw.sample(range(players), players)
    blocks = [order[k : k + size] for k in range(0, players, size)]
    blocks[-1] += [i for i in order if i not in blocks[-1]][: size - len(blocks[-1])]
    return blocks


def first_order(slopes: Sequence[float]) -> Estimate:
    """Of the game v(S) = v(∅) + mean_{i∈S} a_i, in closed form: φ_i = [a_i + (a_i − ā_{−i})(H_k −
    1)]/k.

    Args:
        slopes: a_i, what player i alone adds to first order.
    """
    k, total = len(slopes), sum(slopes)
    harmonic = sum(1 / s for s in range(1, k + 1))
    others = [(total - a) / (k - 1) if k > 1 else 0.0 for a in slopes]
    phi = tuple(
        (a + (a - mean) * (harmonic - 1)) / k for a, mean in zip(slopes, others, strict=True)
    )
    return Estimate(phi, (inf,) * k, 0)


def _error(column: Sequence[float]) -> float:
    return stdev(column) / sqrt(len(column)) if len(column) > 1 else inf
