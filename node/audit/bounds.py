"""Lower bounds on ε from one run with many canaries, each of which was in the data by a coin of its
own.

one run   Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846,
          theorem 5.2, add/remove one example. Of m canaries r are guessed; if the run is
          (ε, δ)-DP, v or more are right with probability f(0) + 2mδ·max_i (f(i) − f(0))/i at most,
          where f(i) = P[Bin(r, e^ε/(1 + e^ε)) ≥ v − i]. It assumes nothing of the mechanism, and
          so sees little of it: many canaries share one run's noise.
family    The largest noise of the run's own mechanism, n Poisson-subsampled Gaussians of rate q,
          that the scores allow: those of canaries that are out are its noise and nothing else. ε is
          what the accountant says of that noise. That scores are Gaussian, and used whole instead
          of as guesses, is the idea of Agrawal et al., "Let's ask Gauss: improved one-run privacy
          auditing", arXiv 2606.12733 (known from its abstract).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, chdtri

Floats = npt.NDArray[np.float64]

GUESSED = ((0.002, 0.0), (0.01, 0.0), (0.1, 0.0), (0.1, 0.1), (0.25, 0.25))
"""Shares of the canaries that are said to be in, and out, fixed before anything is seen: the surest
alone give the best bound where ε is large, many where it is small. The best of them counts, each
with its part of the error allowed."""
PRECISION = 1e-4
"""Of ε."""
ROUNDING = 1e-5
"""Noise below this part of the signal is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """The canaries with the highest and lowest scores, taken for those in and out."""

    made: int
    right: int


def guesses(scores: Floats, included: npt.NDArray[np.bool_], high: float, low: float) -> Guesses:
    """The share `high` of m canaries with the highest scores [m] is said to be in the data, the
    share `low` with the lowest to be out; `included` is the truth."""
    order = np.argsort(scores, kind="stable")
    top, bottom = max(1, round(high * len(order))), round(low * len(order))
    right = int(included[order[-top:]].sum()) + int((~included[order[:bottom]]).sum())
    return Guesses(made=top + bottom, right=right)


def one_run(
    scores: Floats, included: npt.NDArray[np.bool_], delta: float, error: float
) -> tuple[float, Guesses]:
    """The largest ε that is refuted with this probability of error (0: none is), and the guesses
    that did it."""
    tried = [guesses(scores, included, *shares) for shares in GUESSED]
    bounds = [epsilon_of(each, len(scores), delta, error / len(tried)) for each in tried]
    best = max(range(len(tried)), key=bounds.__getitem__)
    return bounds[best], tried[best]


def epsilon_of(guessed: Guesses, canaries: int, delta: float, error: float) -> float:
    """The largest ε with which so many right guesses are no likelier than `error`."""
    if chance(guessed, canaries, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, 1.0
    while chance(guessed, canaries, high, delta) <= error:
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        if chance(guessed, canaries, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def chance(guessed: Guesses, canaries: int, epsilon: float, delta: float) -> float:
    """At most so likely are so many right guesses of an (ε, δ)-private run."""
    p = 1 / (1 + exp(-epsilon))
    fewer = np.arange(guessed.right + 1)
    tails = _at_least(guessed.right - fewer, guessed.made, p)
    slack = np.max((tails[1:] - tails[0]) / fewer[1:], initial=0.0)
    return min(1.0, float(tails[0] + 2 * canaries * delta * slack))


def _at_least(v: npt.NDArray[np.int64], n: int, p: float) -> Floats:
    """P[Bin(n, p) ≥ v]."""
    tails: Floats = np.where(v <= 0, 1.0, betainc(np.maximum(v, 1), n - v + 1, p))
    return tails


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Scores of canaries in and out, in units in which one that is in every batch scores 1."""

    noise: float
    """Standard deviation of those out."""
    degrees: int
    """How many are out, less one."""
    signal: float
    """How much higher those in are in the mean; q is expected."""
    error: float
    """Its standard error."""

    @classmethod
    def of(cls, scores: Floats, included: npt.NDArray[np.bool_]) -> Spread:
        inside, outside = scores[included], scores[~included]
        within, without = float(inside.var(ddof=1)), float(outside.var(ddof=1))
        return cls(
            noise=sqrt(without),
            degrees=len(outside) - 1,
            signal=float(inside.mean() - outside.mean()),
            error=sqrt(within / len(inside) + without / len(outside)),
        )

    def largest_sigma(self, rate: float, releases: int, error: float) -> float:
        """The largest σ of n releases that the scores allow with this probability of error; 0: what
        is left of noise is rounding.

        The noise is at most what chi-square allows; and the canaries' sensitivity is taken for C
        unless their signal refutes that: if it was twice as large, so was the noise half.
        """
        if self.noise <= ROUNDING * abs(self.signal):
            return 0.0
        noise = self.noise * sqrt(self.degrees / chdtri(self.degrees, 1 - error / 2))
        reach = NormalDist().inv_cdf(1 - error / 4) * self.error
        low, high = (self.signal - reach) / rate, (self.signal + reach) / rate
        sensitivity = min(max(1.0, low), high)
        return noise * sqrt(releases) / sensitivity if sensitivity > 0 else inf
