"""How large an honest node's payload can be: the public bounds to which every receiver holds it.

An answer in a noised mode is a release, which `node.privacy.noise.largest` bounds at every node.
What is said or mixed, and an answer without noise, has a root mean square of at most [limits] rms.
A question is not bounded. A node whose own state is beyond that has diverged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from statistics import median_low

from node.config import LimitsSection, PrivacySection
from node.privacy import noise
from peer.message import Peer
from peer.session.interfaces import Role

ROUNDING = 1e-4
"""Relative slack for sums of squares in float32."""
OUTLIER = 10.0
"""Times the usual distance from which a neighbor's payload is reported."""


@dataclass(frozen=True, slots=True)
class Bounds:
    rms: float = LimitsSection().rms
    """Largest root mean square of a payload."""
    release: float = inf
    """Largest norm of a release; inf where there is no noise."""

    @classmethod
    def of(cls, limits: LimitsSection, privacy: PrivacySection, *, sigma: float, d: int) -> Bounds:
        """Args: sigma: the nominal noise multiplier of the run; d: its parameters."""
        if privacy.mode == "none":
            return cls(limits.rms)
        return cls(
            limits.rms, noise.largest(privacy.largest_sum, sigma, privacy.clip, privacy.batch, d)
        )

    def norm(self, elements: int, role: Role | None = None) -> float:
        """Largest norm of a payload of so many elements."""
        most = self.rms * sqrt(elements)
        return (1 + ROUNDING) * (min(most, self.release) if role is Role.ANSWER else most)


RMS_ONLY = Bounds()
"""Of a run without noise that says nothing of limits."""


def outliers(distances: Mapping[Peer, float]) -> dict[Peer, float]:
    """Whose distance is more than OUTLIER times the (lower) median of all, and how many times that
    is. Of two that differ so much nobody can say which is odd: it is the farther one."""
    usual = median_low(distances.values()) if distances else 0.0
    return {peer: it / usual for peer, it in sorted(distances.items()) if it > OUTLIER * usual > 0}
