"""The noise of a run: how much it takes, and how it enters the accountant."""

from __future__ import annotations

from node.config import PrivacySection
from node.privacy import noise
from node.privacy.accountant import Mechanism, calibrate


def noise_multiplier(config: PrivacySection, *, d: int, rounds: int, releases: int) -> float:
    """The nominal σ of a strict run: `config.sigma`, or calibrated so that ε_total ≤
    `config.epsilon`. Takes a CPU second or two.

    Args:
        d: number of parameters.
        releases: |K| of the largest closed neighborhood.

    Raises:
        ConfigurationError: no noise reaches the target.
    """
    if config.epsilon is None:
        return config.sigma or 0.0
    effective = calibrate(
        config.epsilon,
        config.delta,
        rate=config.rate,
        rounds=rounds,
        releases=releases,
        batches=config.batches,
    )
    return noise.nominal(effective, d)


def release_mechanism(
    config: PrivacySection, *, d: int, sigma: float, releases: int, unit: str
) -> Mechanism:
    """How releases of d parameters with the nominal σ are accounted for; `unit` as in `[task]`."""
    if config.mode == "none":
        return Mechanism(sigma=0.0, rate=1.0, mode="none")
    return Mechanism(
        sigma=noise.effective(sigma, d),
        rate=config.rate,
        batches="shared" if config.mode == "paper" else config.batches,
        releases=releases,
        mode=config.mode,
        unit=unit,
    )
