"""What must be said of a run's privacy beside its figures."""

from __future__ import annotations

from node.config import (
    PrivacySection,
)
from node.privacy.accountant import (
    WEAK,
)

PAPER_WARNING = (
    "Mode paper follows the papers' own calibration: the clean own gradient enters what is sent, "
    "so no ε is guaranteed."
)
SEED_WARNING = (
    "privacy.insecure_seed is set: anybody who knows it can compute noise and batches; there is no "
    "guarantee."
)
NO_PRIVACY = (
    "Mode none: gradients leave without noise; whoever receives them can reconstruct private "
    "examples."
)


def weak(planned: float | None) -> str | None:
    """What must be said of a planned ε_total that promises next to nothing; None: it does promise
    something.
    """
    if planned is None or planned <= WEAK:
        return None
    return (
        f"The planned ε_total is {planned:.3g}, and above {WEAK:g} it promises next to nothing: "
        "what leaves may show single records; set privacy.epsilon to 10 or less, or privacy.sigma "
        "higher."
    )


def warning(config: PrivacySection, planned: float | None = None) -> str | None:
    """The warning that accompanies every statement of privacy if this ε_total is planned."""
    sentences = [
        PAPER_WARNING if config.mode == "paper" else "",
        NO_PRIVACY if config.mode == "none" else "",
        SEED_WARNING if config.insecure_seed is not None and config.mode != "none" else "",
        weak(planned) or "",
    ]
    return " ".join(filter(None, sentences)) or None
