"""LiRA's likelihood ratios, and what they are worth: Carlini et al., "Membership Inference Attacks
From First Principles", arXiv 2112.03570. What is measured, and of what: node/audit/membership.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many members are recognized while so many others are taken for members."""

    false_positives: float
    true_positives: float
    low: float
    high: float
    """95 % interval of `true_positives` (Clopper and Pearson), as if records were independent."""
    bound: float
    """No attacker has more, by the run's accountant; 1: there is no guarantee."""


def scores(figures: Floats, present: NDArray[np.bool_]) -> Floats:
    """ln of the likelihood ratio of every record in every run, [runs, records], from figures [runs,
    records, kinds] and who was there [runs, records]; each run by all others.
    """
    result = np.zeros(present.shape)
    for k in range(len(present)):
        others = np.delete(figures, k, 0)
        there = np.delete(present, k, 0)[..., None]
        for sign, member in ((1.0, there), (-1.0, ~there)):
            count = member.sum(0)
            total = np.where(member, others, 0.0).sum(0)
            mean = np.where(count, total / np.maximum(count, 1), others.mean(0))
            apart = np.where(member, others - mean, 0.0)
            variance = (apart**2).sum((0, 1)) / max(1, int((count - (count > 0)).sum()))
            predicted = np.maximum(variance, 1e-24) * (1 + 1 / np.maximum(count, 1))
            likelihood = -((figures[k] - mean) ** 2) / predicted - np.log(predicted)
            result[k] += sign * likelihood.sum(-1) / 2
    return result


def rate_at(members: Floats, others: Floats, share: float, *, bound: float) -> Rate:
    """From the scores of members, and of others, sorted; at most `share` of them are taken for
    members.
    """
    threshold = others[-1 - int(share * len(others))]
    n, hits = len(members), int((members > threshold).sum())
    tail = (1 - CONFIDENCE) / 2
    return Rate(
        false_positives=share,
        true_positives=hits / n,
        low=float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0,
        high=float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0,
        bound=bound,
    )
