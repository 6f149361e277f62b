"""Scores of predictions on a test set, NaN where they are not defined. All arguments have one entry
for each example.
"""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
BINS = 10


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The probability that an example that is positive scores above one that is not, ties counting
    half: the area under the ROC curve, by the sum of ranks (Mann and Whitney).
    """
    n, others = int(positive.sum()), int((~positive).sum())
    if not (n and others and np.isfinite(scores).all()):
        return nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * others))


def mean_auc(probabilities: Floats, y: Labels) -> float:
    """Mean of the classes' AUC, each against all others; probabilities [n, classes]. NaN where a
    class has no example, or all.
    """
    classes = probabilities.shape[1]
    return float(np.mean([auc(probabilities[:, k], y == k) for k in range(classes)]))


def balanced_accuracy(chosen: Labels, y: Labels) -> float:
    """Mean, over the classes in y, of the share of their examples that are classified correctly."""
    return float(np.mean([(chosen[y == k] == k).mean() for k in np.unique(y)]))


def calibration_error(probabilities: Floats, positive: NDArray[np.bool_]) -> float:
    """How far predicted probabilities are from observed shares, in BINS bins of equal width,
    weighted by their examples: the expected calibration error (Naeini et al., AAAI 2015).
    """
    if not np.isfinite(probabilities).all():
        return nan
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    predicted = np.bincount(bins, probabilities, BINS)
    observed = np.bincount(bins, positive.astype(np.float64), BINS)
    return float(np.abs(predicted - observed).sum() / len(bins))


def r2(predicted: Floats, y: Floats) -> float:
    """1 − squared error over that of y's own mean; NaN where y is constant."""
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((predicted - y) ** 2).sum()) / spread if spread else nan
