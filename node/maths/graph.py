"""Facts about a mixing matrix W."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peer.message import Peer


def spectral_gap(rows: Mapping[Peer, Mapping[Peer, float]]) -> float:
    """1 − |λ₂|, λ₂ the eigenvalue of the symmetric W [N, N] with the second largest modulus; 1 for
    a single node.

    One mixing brings the nodes' distance from their mean down to |λ₂| of it at most: 1 is full
    averaging in one round, near 0 (long rings) models stay apart.
    """
    names = sorted(rows)
    if len(names) == 1:
        return 1.0
    w = np.array([[rows[i].get(j, 0.0) for j in names] for i in names])
    return float(1.0 - np.sort(np.abs(np.linalg.eigvalsh(w)))[-2])
