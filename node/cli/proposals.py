"""`peerpoise plan --propose`: q, T, K and σ for a target ε and a budget of compute and bytes.

A node that may compute so many gradients of examples chooses between many rounds with small
batches and few with large ones. In T steps of one size the gradients of n examples, none longer
than C, move a model by T·C at most, and their noise by √T·σC/(qn) in each coordinate:

    noise = σ/(qn√T)      the less, the more is learned at this ε

It falls with q, so large batches win, as long as there are enough rounds left to learn in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

from node.algorithms.muffliato import MuffliatoConfig
from node.config import RunConfig
from node.learning.plan import Plan
from node.privacy.calibration import noise_multiplier
from peer.errors import ConfigurationError

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""On the file's T."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a node may spend on a run; None: as much as the file's own q, T and K do."""

    examples: float | None = None
    """Gradients of single examples that it computes for its own release, expected."""
    megabytes: float | None = None
    """Of models that it sends, for algorithms that gossip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    rate: float
    """q."""
    batch: int
    """B = qn."""
    rounds: int
    """T."""
    gossip: int | None
    """K: exchanges in a round; None: the algorithm has no such choice."""
    sigma: float
    noise: float
    """σ/(qn√T)."""
    examples: float
    """qnT."""
    megabytes: float | None
    """What a node with most neighbors sends; None where K or the model's size is not known."""


def propose(
    run: RunConfig,
    plan: Plan,
    d: int | None,
    limits: Limits,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Proposal, ...]:
    """Fewest rounds first. Some CPU seconds each.

    Raises:
        ConfigurationError: there is no target, or no choice within these limits.
    """
    privacy = run.privacy
    if privacy.epsilon is None:
        raise ConfigurationError("--propose looks for σ: set --epsilon, the target, not sigma.")
    n = privacy.public_examples
    examples = limits.examples or privacy.rate * n * run.train.rounds
    proposals = []
    for rounds, rate in _choices(run.train.rounds, examples / n):
        gossip, megabytes = _gossip(plan, d, rounds, run.train.rounds, limits)
        if gossip == 0:
            continue
        say(f"calibrating for {rounds} rounds")
        changed = privacy.model_copy(update={"rate": rate})
        sigma = noise_multiplier(changed, d=d or 0, rounds=rounds, releases=plan.releases)
        proposals.append(
            Proposal(
                rate=rate,
                batch=max(1, round(rate * n)),
                rounds=rounds,
                gossip=gossip,
                sigma=sigma,
                noise=sigma / (rate * n * sqrt(rounds)),
                examples=rate * n * rounds,
                megabytes=megabytes,
            )
        )
    if not proposals:
        raise ConfigurationError(
            "No q up to 1 and no K spend so little; allow more --examples or --megabytes, or set "
            "other --rounds."
        )
    return tuple(proposals)


def _choices(rounds: int, passes: float) -> Iterator[tuple[int, float]]:
    """(T, q) with qT = `passes` over the data."""
    for factor in FACTORS:
        tried = max(1, round(factor * rounds))
        rate = float(f"{passes / tried:.4g}")
        if 0 < rate <= 1:
            yield tried, rate


def _gossip(
    plan: Plan, d: int | None, rounds: int, planned: int, limits: Limits
) -> tuple[int | None, float | None]:
    """(K, megabytes): as many exchanges as the bytes allow, up to those that average enough."""
    options = plan.options
    if not isinstance(options, MuffliatoConfig) or options.gossip is None:
        return None, None
    enough = options.model_copy(update={"gossip": None}).on_graph(
        plan.spectral_gap or 1.0, len(plan.neighborhoods)
    )
    assert enough.gossip
    if d is None:
        return options.gossip, None
    exchange = 4e-6 * d * max(each.degree for each in plan.neighborhoods.values())
    planned_megabytes = exchange * options.gossip * planned
    allowed = planned_megabytes if limits.megabytes is None else limits.megabytes
    k = min(enough.gossip, int(allowed / (exchange * rounds) + 1e-9))
    return k, exchange * k * rounds
