"""The table of docs/privacy.md, computed again: the best attacker against Gaussian noise."""

from __future__ import annotations

import math
import re

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from kit import ROOT

PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([\d.]+) \| ([\d.]+)(?: in 100)? \|$", PAGE, re.MULTILINE)
DELTA = 1e-5


def delta_of(mu: float, epsilon: float) -> float:
    """Of a Gaussian mechanism with sensitivity over noise μ (Balle, Wang, arXiv 1805.06530, (6))."""
    tail = math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)
    return float(norm.cdf(-epsilon / mu + mu / 2) - tail)


def test_the_table_is_there() -> None:
    assert [float(epsilon) for epsilon, _ in ROWS] == [0.5, 1, 2, 4, 8, 20]


@pytest.mark.parametrize(("epsilon", "found"), ROWS)
def test_who_is_found_at_one_false_accusation_in_100(epsilon: str, found: str) -> None:
    mu = brentq(lambda mu: delta_of(mu, float(epsilon)) - DELTA, 1e-3, 20)
    power = 100 * norm.cdf(norm.ppf(0.01) + mu)
    digits = len(found.partition(".")[2])
    assert float(found) == pytest.approx(power, abs=0.5 * 10**-digits)
