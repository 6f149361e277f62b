"""How a closed neighborhood's vectors become one: the W-weighted mean, and robust aggregation,
which tolerates f = `byzantine` Byzantine neighbors.

    mean          Σ_j w_ij x_j
    median        of every coordinate (Yin et al., arXiv 1803.01498)
    trimmed_mean  of every coordinate, without the f largest and smallest values (the same paper)
    multi_krum    the mean of the n − f vectors nearest to their n − f − 2 nearest others (Blanchard
                  et al., arXiv 1703.02757)
    clipping      x_i + Σ_j w_ij clip(x_j − x_i, τ), self-centered (He, Karimireddy, Jaggi, arXiv
                  2202.01545)

All but the mean are pure functions of what one node heard, so W is not doubly stochastic any more:
the mean of x over the nodes drifts, most where data differ most. median, trimmed_mean and
multi_krum don't use W's weights. A tuple (x, v) is mixed place by place: a neighbor may be left out
of one and not of the other.

Deviations
    * multi_krum scores with at least one nearest other, so that it works on a ring (n = 3, where
      the paper's n − f − 2 is 0), and breaks ties, which two vectors that are each other's nearest
      always make then, by the distance to all. Its theorem asks for n ≥ 2f + 3.
    * τ of clipping, where none is given, is the largest distance to a neighbor after the f farthest
      are left out (f = 1 as in the authors' public code); their theory wants distances to honest
      ones, which nobody knows.
    * Where too few were heard to decide anything (`ENOUGH`), the own vector stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from node.config import MixSection
from node.maths.mixing import average, weighted_sum
from peer.message import Mix, Peer
from peer.neighborhood import Neighborhood

Vectors: TypeAlias = Mapping[Peer, Tensor]
"""What was heard from each peer of the closed neighborhood, me included, [d] each."""
Rule: TypeAlias = Callable[[Mapping[Peer, float], Vectors, Peer, MixSection], Tensor]
"""(row of W over those heard, their vectors, me, [mix]) -> [d]. The vectors are left as they
are.
"""

BLOCK = 1 << 14
"""Coordinates sorted at a time: a neighborhood of ten stays in the cache."""


def mean(weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection) -> Tensor:
    """Σ_j w_ij x_j."""
    return average(weight, vectors)


def median(weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection) -> Tensor:
    """Of every coordinate; of an even number the mean of the two in the middle."""
    return _trimmed(_rows(weight, vectors), (len(weight) - 1) // 2)


def trimmed_mean(
    weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection
) -> Tensor:
    """Of every coordinate, without the `byzantine` largest and the `byzantine` smallest values."""
    return _trimmed(_rows(weight, vectors), mix.byzantine)


def multi_krum(weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection) -> Tensor:
    """The mean of the n − f vectors whose squared distances to their nearest others have the
    smallest sums.
    """
    peers = sorted(weight)
    keep = len(peers) - mix.byzantine
    apart = torch.stack(
        [torch.stack([distance(vectors[i], vectors[j]) for j in peers]) for i in peers]
    )
    apart = apart.square().sort(dim=1).values  # column 0 is the distance to itself
    score = apart[:, : 1 + max(1, keep - 2)].sum(1).tolist()
    total = apart.sum(1).tolist()
    chosen = sorted(range(len(peers)), key=lambda k: (score[k], total[k]))[:keep]
    return weighted_sum({peers[k]: 1 / keep for k in chosen}, vectors)


def clipping(weight: Mapping[Peer, float], vectors: Vectors, me: Peer, mix: MixSection) -> Tensor:
    """x_i + Σ_j w_ij (x_j − x_i)·min{1, τ/‖x_j − x_i‖}."""
    center = vectors[me]
    apart = {j: float(distance(vectors[j], center)) for j in sorted(weight) if j != me}
    tau = mix.tau if mix.tau is not None else sorted(apart.values())[-1 - mix.byzantine]
    result = center.clone()
    for j, far in apart.items():
        shrink = min(1.0, tau / far) if far else 0.0
        result.add_(vectors[j] - center, alpha=weight[j] * shrink)
    return result


RULES: Mapping[str, Rule] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "multi_krum": multi_krum,
    "clipping": clipping,
}
"""`[mix] rule`, or a Mix's own rule -> function. A new rule: one function, one line here, one in
ENOUGH.
"""

ENOUGH: Mapping[str, Callable[[MixSection], int]] = {
    "mean": lambda mix: 1,
    "median": lambda mix: 3,
    "trimmed_mean": lambda mix: 2 * mix.byzantine + 1,
    "multi_krum": lambda mix: 2 * mix.byzantine + 1,
    "clipping": lambda mix: 1 if mix.tau is not None else mix.byzantine + 2,
}
"""rule -> size of the smallest closed neighborhood in which it can decide anything."""


MEAN = MixSection()
"""The default: every Mix is the W-weighted mean, unless it asks for another rule itself."""


def is_mean(verb: Mix[Tensor], mix: MixSection) -> bool:
    """Whether a Mix is a weighted mean, by W or by its own weights."""
    return verb.rule == "mean" and (verb.weights is not None or mix.rule == "mean")


def rule_of(
    verb: Mix[Tensor], mix: MixSection, me: Peer
) -> Callable[[Mapping[Peer, float], Vectors], Tensor]:
    """The rule of this Mix at this node."""
    own = verb.weights is not None and verb.rule == "mean"
    return average if own else rule_for(verb.rule, mix, me)


def rule_for(
    asked: str | Rule, mix: MixSection, me: Peer
) -> Callable[[Mapping[Peer, float], Vectors], Tensor]:
    """The rule of a Mix at this node; one that asks for "mean" gets the run's `[mix] rule`."""
    if not isinstance(asked, str):
        return lambda weight, vectors: asked(weight, vectors, me, mix)
    name = mix.rule if asked == "mean" else asked
    rule, enough = RULES[name], ENOUGH[name](mix)
    return lambda weight, vectors: (
        rule(weight, vectors, me, mix) if len(weight) >= enough else vectors[me].clone()
    )


def undersized_neighborhood(
    neighborhoods: Mapping[Peer, Neighborhood], mix: MixSection
) -> Peer | None:
    """A node whose closed neighborhood is too small for the run's rule, if there is one."""
    enough = ENOUGH[mix.rule](mix)
    for name, neighborhood in sorted(neighborhoods.items()):
        if len(neighborhood.weight) < enough:
            return name
    return None


def _rows(weight: Mapping[Peer, float], vectors: Vectors) -> Tensor:
    """[n, d], in sorted order of peers, float32 or wider."""
    rows = torch.stack([vectors[peer] for peer in sorted(weight)])
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _trimmed(rows: Tensor, byzantine: int) -> Tensor:
    """The mean over dimension 0 of [n, d], without the f largest and smallest of every column."""
    kept = slice(byzantine, len(rows) - byzantine)
    return torch.cat(
        [block.sort(dim=0).values[kept].mean(0) for block in torch.split(rows, BLOCK, dim=1)]
    )


def distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ of two vectors [d], in float64."""
    apart: Tensor = torch.linalg.vector_norm(a - b, dtype=torch.float64)
    return apart
