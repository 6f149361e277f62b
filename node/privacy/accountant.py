"""ε of what was spent: composed Poisson-subsampled Gaussians, add/remove one example, or all rows
of one privacy unit (`task.unit`).

The reported figure is by privacy loss distributions (dp-accounting PLD, an upper bound), the live
gauge by cached Rényi vectors (looser, 0.2 ms). One composition is

    independent batches    a debit: one subsampled Gaussian at σ
    shared batch           a round: ONE subsampled Gaussian at σ/√|K|, however many of its |K|
                           answers were made

Counting a shared batch's answers as independent under-reports (σ = 2, q = 250/6000, 4 × 1000
answers: 6.60 for 8.90). σ is always the effective multiplier (`noise.effective`). dp_accounting is
imported on first use: it costs a CPU second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from peer.errors import ConfigurationError

Mode = Literal["strict", "paper", "none"]
Batches = Literal["independent", "shared"]

DISCRETIZATION = 1e-3
"""Step of the discretized privacy loss: 1e-4 moves ε by 0.02 % and takes seven times as long."""

PLD_CUTOFF = 100.0
"""Above this Rényi ε it is itself the figure: the exact one would take unbounded memory and help
nobody."""

ROUGH_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""They show at once that an ε is below `PLD_CUTOFF`."""

PROFILE_DELTA = 1e-5
"""At which δ a profile is asked whether it is worth computing."""

WEAK = 20.0
"""An ε_total above this is a warning everywhere: odds may change by e^20, no useful promise."""

MOST_COMPOSITIONS = 1_000_000
"""`remaining_compositions` counts no further unless told to."""

LEAST_SIGMA = 1e-3
"""`calibrate` goes no lower: where nothing is released, any σ keeps the target."""


OTHER_UNIT = (
    "Earlier runs on these data and this one don't protect the same (task.unit), and ε of "
    "different units don't add up: together they are infinite."
)
"""Beside an ε over several runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """How one answer was made."""

    sigma: float
    """Effective noise multiplier of one answer; 0 in mode none."""
    rate: float
    """q of the Poisson batch."""
    batches: Batches = "independent"
    releases: int = 1
    """|K|: answers a round at most, the own release included."""
    mode: Mode = "strict"
    unit: str = ""
    """Whose rows, all of them, are added or removed (`task.unit`); empty: one example."""

    @property
    def guaranteed(self) -> bool:
        """Only what strict mode released has an ε."""
        return self.mode == "strict" and self.sigma > 0

    @property
    def composition_sigma(self) -> float:
        """Multiplier of one composition: σ, or σ/√|K| for a shared batch's whole round."""
        return self.sigma / math.sqrt(self.releases) if self.batches == "shared" else self.sigma

    def compositions(self, rounds: int) -> int:
        """Compositions of a run in which every answer is made."""
        if self.batches == "shared" and self.releases:
            return rounds
        return rounds * self.releases


@dataclass(frozen=True, slots=True)
class Spent:
    """A run-length coded part of a ledger."""

    mechanism: Mechanism
    compositions: int


def epsilon_pld(rows: Iterable[Spent], delta: float) -> float:
    """ε of everything in `rows` together, by PLD. inf: there is no guarantee, or none at this δ;
    never an exception. Takes 0.2 s, once.
    """
    return _epsilon_pld(tuple(row for row in rows if row.compositions > 0), delta)


@lru_cache(maxsize=256)
def _epsilon_pld(spent: tuple[Spent, ...], delta: float) -> float:
    if not _have_epsilon(spent):
        return math.inf
    if not spent:
        return 0.0
    bound, _ = _optimum(spent, delta, ROUGH_ORDERS)
    if bound > PLD_CUTOFF and (figure := epsilon_rdp(spent, delta)) > PLD_CUTOFF:
        return figure
    return float(_composed(spent).get_epsilon(delta))


@lru_cache(maxsize=4)
def _composed(spent: tuple[Spent, ...]) -> Any:
    """A PLD accountant that has composed these."""
    accountant = _dp().pld.PLDAccountant(value_discretization_interval=DISCRETIZATION)
    for row in spent:
        accountant.compose(
            _event(row.mechanism.composition_sigma, row.mechanism.rate), row.compositions
        )
    return accountant


def privacy_profile(rows: Iterable[Spent], epsilons: Sequence[float]) -> npt.NDArray[np.float64]:
    """δ(ε) of everything in `rows` together at each of these ε, by PLD; 1 where there is no
    guarantee, or none worth the memory that its figure would take.
    """
    spent = tuple(row for row in rows if row.compositions > 0)
    if not spent:
        return np.zeros(len(epsilons))
    if epsilon_rdp(spent, PROFILE_DELTA) > PLD_CUTOFF:
        return np.ones(len(epsilons))
    accountant = _composed(spent)
    return np.array([accountant.get_delta(epsilon) for epsilon in epsilons])


def _have_epsilon(spent: Sequence[Spent]) -> bool:
    """Together: all were released in mode strict, and protect the same."""
    return all(row.mechanism.guaranteed for row in spent) and len(units(spent)) <= 1


def epsilon_rdp(rows: Iterable[Spent], delta: float) -> float:
    """As `epsilon_pld`, by Rényi divergence: 8–25 % larger, 0.2 ms once σ and q have been seen."""
    spent = [row for row in rows if row.compositions > 0]
    if not _have_epsilon(spent):
        return math.inf
    if not spent:
        return 0.0
    _, order = _optimum(spent, delta, _whole_orders())
    return _optimum(spent, delta, _orders_around(order))[0]


def _optimum(
    spent: Iterable[Spent], delta: float, orders: tuple[float, ...]
) -> tuple[float, float]:
    """ε by these orders, and the one at which it is smallest."""
    total = sum(
        row.compositions * _renyi(row.mechanism.composition_sigma, row.mechanism.rate, orders)
        for row in spent
    )
    figure, order = _dp().rdp.compute_epsilon(np.asarray(orders), total, delta)
    return math.inf if math.isnan(figure) else float(figure), float(order)


def units(rows: Iterable[Spent]) -> set[str]:
    """Whom what was spent protects. ε of different units don't add up: clipped by persons, one row
    more or less moves a sum by up to 2C; clipped by rows, nothing bounds what a person moves.
    """
    return {row.mechanism.unit for row in rows if row.mechanism.guaranteed}


def epsilon_total(mechanism: Mechanism, rounds: int, delta: float) -> float:
    """THE guarantee of a run: all |K| answers of every round, against any coalition."""
    return epsilon_pld([Spent(mechanism, mechanism.compositions(rounds))], delta)


def epsilon_link(mechanism: Mechanism, rounds: int, delta: float) -> float:
    """One stream of answers alone. A diagnostic, NOT a guarantee: the others reach the same
    neighbor by other ways.
    """
    return epsilon_total(replace(mechanism, releases=1), rounds, delta)


def calibrate(
    target: float,
    delta: float,
    *,
    rate: float,
    rounds: int,
    releases: int = 1,
    batches: Batches = "independent",
) -> float:
    """The smallest effective σ (four digits, rounded up; LEAST_SIGMA at least) with which a run of
    `rounds` has ε_total ≤ target (PLD).

    Raises:
        ConfigurationError: no σ up to a million reaches the target at this δ.
    """

    def figure(by: Callable[[Iterable[Spent], float], float], sigma: float) -> float:
        mechanism = Mechanism(sigma=sigma, rate=rate, batches=batches, releases=releases)
        return by([Spent(mechanism, mechanism.compositions(rounds))], delta)

    high = 1.0
    reaches = _Reaches(partial(figure, epsilon_rdp), target, high)
    while not reaches(high):
        high *= 2.0
        if high > 1e6:
            raise ConfigurationError(
                f"No noise reaches ε = {target:g} at δ = {delta:g}; choose a larger ε or δ."
            )
    high = _bisect(reaches, high / 2 if high > 1 else 1e-2, high, 1.01)
    return _refine(_Reaches(partial(figure, epsilon_pld), target, high), high)


class _Reaches:
    """Is ε(σ), which falls, at most the target? Computed only where that does not follow from what
    was computed before.
    """

    def __init__(self, epsilon: Callable[[float], float], target: float, near: float) -> None:
        """`near`: a σ close to the one that just reaches the target, which is enclosed first."""
        self._epsilon, self._target = epsilon, target
        self._high, self._low = math.inf, 0.0
        """The smallest σ known to reach it, the largest known not to."""
        self._enclose(near)

    def __call__(self, sigma: float) -> bool:
        if self._low < sigma < self._high:
            self._compute(sigma)
        return sigma >= self._high

    def _enclose(self, sigma: float) -> None:
        """Secant steps, as log ε is nearly linear in log σ; then both sides of the root."""
        slope, previous = -1.0, (math.nan, math.nan)
        for _ in range(4):
            epsilon = self._compute(sigma)
            if not 0 < epsilon < math.inf:
                return
            point = (math.log(sigma), math.log(epsilon / self._target))
            run, rise = point[0] - previous[0], point[1] - previous[1]
            if run and rise / run < 0:  # not at the first point, whose differences are NaN
                slope = rise / run
            step, previous = max(-3.0, min(3.0, -point[1] / slope)), point
            sigma = math.exp(point[0] + step)
            if abs(step) < 1e-3:  # the next point is closer than 1e-5
                break
        self(sigma * (1 - 1e-5))
        self(sigma * (1 + 1e-5))

    def _compute(self, sigma: float) -> float:
        epsilon = self._epsilon(sigma)
        if epsilon <= self._target:
            self._high = min(self._high, sigma)
        else:
            self._low = max(self._low, sigma)
        return epsilon


def _refine(good: Callable[[float], bool], start: float) -> float:
    """From a Rényi σ (usually 5–15 % too large) to the PLD one."""
    if good(LEAST_SIGMA):
        return LEAST_SIGMA
    low, high = start * 0.8, start
    while not good(high):
        low, high = high, high * 1.2
        if high > 1e7:
            raise ConfigurationError("No noise reaches this ε at this δ; choose a larger ε or δ.")
    while good(low):
        low, high = low * 0.8, low
    sigma = _bisect(good, low, high, 1.0005)
    digit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    return round(math.ceil(sigma / digit) * digit, 12)


def _bisect(good: Callable[[float], bool], low: float, high: float, ratio: float) -> float:
    """The upper end of a bracket no wider than `ratio`; `good(high)` holds."""
    while high / low > ratio:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def remaining_compositions(
    rows: Iterable[Spent],
    mechanism: Mechanism,
    limit: float,
    delta: float,
    most: int = MOST_COMPOSITIONS,
) -> int:
    """How many more compositions, up to `most`, keep ε(rows and they) ≤ limit, by PLD.

    One is a debit with independent batches, a round with a shared one. 0 when the rows alone
    exceed the limit.
    """
    past = list(rows)

    def affordable(
        compositions: int, figure: Callable[[Iterable[Spent], float], float] = epsilon_pld
    ) -> bool:
        return figure([*past, Spent(mechanism, compositions)], delta) <= limit

    if not mechanism.guaranteed or most < 1:
        return 0
    if affordable(most):
        return most
    low = _last_good(lambda compositions: affordable(compositions, epsilon_rdp), 0, most)
    while low > 0 and not affordable(low):
        low //= 2
    high = low + max(low // 8, 1)
    while high < most and affordable(high):
        low, high = high, 2 * high - low
    return _last_good(affordable, low, min(high, most))


def _last_good(good: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n with good(n), given good(low) and not good(high)."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


@lru_cache(maxsize=256)
def _renyi(sigma: float, rate: float, orders: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Rényi divergence of one composition at each of the orders."""
    accountant = _dp().rdp.RdpAccountant(orders=orders)
    accountant.compose(_event(sigma, rate))
    vector: npt.NDArray[np.float64] = accountant._rdp
    return vector


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    return tuple(float(order) for order in _dp().rdp.RdpAccountant()._orders)


@lru_cache(maxsize=1)
def _whole_orders() -> tuple[float, ...]:
    """They take a tenth of the time."""
    return tuple(order for order in _orders() if order.is_integer())


@lru_cache(maxsize=64)
def _orders_around(best: float) -> tuple[float, ...]:
    """Those next to the best of the whole orders: (α − 1)·ε(α) is convex, so the best of all is
    not farther away.
    """
    whole = _whole_orders()
    place = whole.index(best)
    low = whole[place - 1] if place else 1.0
    high = whole[min(place + 1, len(whole) - 1)]
    return tuple(order for order in _orders() if low <= order <= high)


def _event(sigma: float, rate: float) -> Any:
    gaussian = _dp().GaussianDpEvent(sigma)
    return gaussian if rate >= 1.0 else _dp().PoissonSampledDpEvent(rate, gaussian)


@lru_cache(maxsize=1)
def _dp() -> Any:
    """dp_accounting, without its log lines about Rényi orders that don't converge (they are left
    out, harmlessly).
    """
    import dp_accounting
    import dp_accounting.pld  # noqa: F401 (submodules, reached through the package)
    import dp_accounting.rdp  # noqa: F401

    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_accounting
