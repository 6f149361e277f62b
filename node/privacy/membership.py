"""What an ε means: how well somebody can tell whether a record was among those learned from who
knows all others, knows that record, and sees everything that was released.

Of a test that is right about a record that is there with probability TPR, and wrong about one that
is not with probability FPR, every point of the privacy profile δ(ε) says

    TPR ≤ e^ε FPR + δ(ε)                Wasserman, Zhou, "A statistical framework for
    1 − TPR ≥ e^−ε (1 − FPR − δ(ε))     differential privacy", JASA 2010; Kairouz, Oh, Viswanath,
                                        ICML 2015

so the least of them over ε is the run's own bound, much tighter than its one (ε, δ) alone. That
least is the trade-off function of Dong, Roth, Su, "Gaussian differential privacy", JRSS B 2022.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from node.privacy.accountant import Mechanism, Spent, privacy_profile

FPR = 0.01
"""False alarms that are allowed: of a hundred records that are not there, one."""
EPSILONS = tuple(float(it) for it in np.linspace(0.0, 20.0, 401))
"""Points of the profile that are looked at; fewer would be looser, never wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The best that any test for a known record can do."""

    fpr: float
    total: float
    """TPR from everything that the node releases."""
    link: float
    """TPR from one stream of answers alone: a diagnostic, as ε_link is."""


def membership(mechanism: Mechanism, rounds: int) -> Membership:
    """Of a run in which every answer is made; by PLD, like its ε."""
    alone = replace(mechanism, releases=1)
    total = highest_tpr([Spent(mechanism, mechanism.compositions(rounds))])
    link = highest_tpr([Spent(alone, alone.compositions(rounds))])
    return Membership(fpr=FPR, total=total, link=min(link, total))


def highest_tpr(rows: Iterable[Spent], fpr: float = FPR) -> float:
    """An upper bound, in [fpr, 1]; 1: there is no guarantee."""
    factors, deltas = np.exp(np.asarray(EPSILONS)), privacy_profile(rows, EPSILONS)
    bounds = np.minimum(factors * fpr + deltas, 1 - (1 - fpr - deltas) / factors)
    return float(np.clip(bounds.min(), fpr, 1.0))
