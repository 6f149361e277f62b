"""What must be said of a run's privacy beside its figures."""

from __future__ import annotations

from math import sqrt

from node.config import PrivacySection, TrainSection
from node.privacy.accountant import WEAK

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
DECLARED = (
    "It starts from a model that train.public_start declares to be learned from public data alone; "
    "nothing checks that, and if it is not so, the ε of what it learned from comes on top."
)
PUBLIC_ONLY = "Learned from the public validation set alone: nobody's private examples are in it."
STARTED = (
    "This ε is of this run alone, which starts from a model of an earlier one: the ε of that run "
    "comes on top, and if that had none, there is none."
)


HOPELESS = 10.0
"""Noise this many times as long as all that a batch can add up to: the quickstart's MLP has an
accuracy of .84 at 3, .43 at 12 and .15 at 49 times (.94 with little noise, .10 by chance)."""


def loose_delta(delta: float, examples: float, unit: str = "") -> str | None:
    """What must be said of a δ with which giving one of so many examples, or values of `unit`, away
    whole would keep any ε; None: it is smaller than that."""
    if delta * examples < 1:
        return None
    what = f"values of {unit}" if unit else "examples"
    return (
        f"δ = {delta:g} is not below 1/n for n = {examples:.0f} {what}: publishing one of them "
        "at random would satisfy it; set it to a tenth of 1/n or less."
    )


def hopeless(privacy: PrivacySection, *, sigma: float, d: int, examples: float) -> str | None:
    """What must be said of noise of length σC√d where q of so many examples add up to qnC at most;
    None: it leaves something to learn from."""
    ratio = sigma * sqrt(d) / (privacy.rate * examples)
    if ratio <= HOPELESS:
        return None
    return (
        f"The noise, σC√d, is {ratio:.3g} times as long as all that a batch of n = {examples:.0f} "
        f"can add up to, qnC; above {HOPELESS:g} there is next to nothing to learn: take more "
        "examples, a larger privacy.rate, a smaller model, fewer rounds or neighbors, or a larger "
        "ε."
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


def warning(
    config: PrivacySection,
    train: TrainSection,
    planned: float | None = None,
    *,
    public: bool = False,
) -> str | None:
    """The warning that accompanies every statement of privacy if this ε_total is planned. `public`:
    no private example is learned from.
    """
    strict, start = config.mode == "strict", ""
    if train.start is not None and (strict or public):
        start = DECLARED if train.public_start else STARTED
    sentences = [
        PAPER_WARNING if config.mode == "paper" else "",
        NO_PRIVACY if config.mode == "none" and not public else "",
        PUBLIC_ONLY if public and not start else "",
        SEED_WARNING if config.insecure_seed is not None and config.mode != "none" else "",
        weak(planned) or "",
        start,
    ]
    return " ".join(filter(None, sentences)) or None
