"""Does `doctor` mark a column in another unit, and leave the others alone? On random tables, scaled
by what `schema` proposes from another table of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from node.data import profile, proposal

Values = NDArray[np.float64]
TABLES = 400
DRAWN: dict[str, Callable[[np.random.Generator], Callable[[int], Values]]] = {
    "normal": lambda rng: _normal(rng, rng.uniform(-100, 100), 10 ** rng.uniform(-1, 2)),
    "uniform": lambda rng: _uniform(rng, rng.uniform(-100, 100), 10 ** rng.uniform(-1, 2)),
    "lognormal": lambda rng: _lognormal(rng, rng.uniform(0.2, 1.5), 0.0),
    "counts": lambda rng: _counts(rng, 10 ** rng.uniform(-0.5, 2)),
    "mostly zero": lambda rng: _lognormal(rng, rng.uniform(0.2, 1.5), rng.uniform(0.3, 0.9)),
}


def _normal(rng: np.random.Generator, mean: float, std: float) -> Callable[[int], Values]:
    return lambda n: rng.normal(mean, std, n)


def _uniform(rng: np.random.Generator, low: float, width: float) -> Callable[[int], Values]:
    return lambda n: rng.uniform(low, low + width, n)


def _lognormal(rng: np.random.Generator, sigma: float, zeros: float) -> Callable[[int], Values]:
    return lambda n: np.where(rng.random(n) < zeros, 0.0, rng.lognormal(0, sigma, n))


def _counts(rng: np.random.Generator, mean: float) -> Callable[[int], Values]:
    return lambda n: rng.poisson(mean, n).astype(np.float64)


def marked(times: float) -> dict[str, float]:
    """The share of columns of each kind that are marked, where one site writes so many times the
    other's unit.
    """
    shares = {}
    for kind, make in DRAWN.items():
        rng, count = np.random.default_rng(1), 0
        for _ in range(TABLES):
            draw = make(rng)
            ours = draw(int(10 ** rng.uniform(1.5, 3.5)))
            theirs = draw(int(10 ** rng.uniform(1.5, 3.5)))
            scale = proposal._scale(ours)
            count += bool(profile._unit((times * theirs - proposal._center(ours, scale)) / scale))
        shares[kind] = count / TABLES
    return shares


def test_a_usual_column_is_hardly_ever_marked() -> None:
    shares = marked(1.0)
    assert np.mean(list(shares.values())) < 0.01, shares
    assert max(shares.values()) < 0.02, shares


@pytest.mark.parametrize("times", [88.4, 1 / 88.4, 365.0])
def test_another_unit_is(times: float) -> None:
    shares = marked(times)
    assert min(shares.values()) > 0.9, shares


@pytest.mark.parametrize(
    ("values", "center"), [([1010, 1013.2, 1016], 1013), ([36.2, 36.6, 37.1], 36.6), ([5], 5)]
)
def test_a_center_is_as_fine_as_its_scale(values: list[float], center: float) -> None:
    """Not rounded by its own size: 1013 ± 4 is not 1000."""
    known = np.array(values, dtype=np.float64)
    assert proposal._center(known, proposal._scale(known)) == center


def test_what_is_said_names_the_factor() -> None:
    x = np.linspace(-1.7, 1.7, 1001)
    assert "39 times wider" in profile._unit(40 * x)
    assert "times narrower" in profile._unit(x / 40)
    assert "5.0 scales away" in profile._unit(x + 5.0)
