"""What an attacker of fgrpo says of its rewards."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 1e99
"""Magnitude of a claim; from 1e100 on commitments are refused."""


class ClaimConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    claim: float | None = None
    """Of fgrpo: the reward that it claims in its commitments; None: the true one. They are to what
    it sends, in a chain that holds."""
    claim_growth: float = Field(default=1.0, ge=1, le=2)
    """The claim grows by this factor every round, so that it always outdoes its own past."""

    def claimed(self, truth: float, rounds: int) -> float:
        """What it claims after so many rounds of claims."""
        if self.claim is None:
            return truth
        grown = self.claim * self.claim_growth ** min(rounds, 1000)
        return max(-LARGEST, min(LARGEST, grown))
