"""Weighted sums over a neighborhood, and which edges of it are mixed.

`average_into` is the one way to average and sorted peers the one order, for every driver: whole
vectors and frames of them, added in this order, give the same bits (each element is a chain of the
same operations, wherever it lies in a frame). Bits may differ between processors of different kinds
(fused multiply-add), never between drivers.

Differences are added, so where all nodes agree an average is exactly what they agree on. As
Σ_j w_j x_j it would be off by rounding, which signals such as DECA's (8) turn into whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import sqrt
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from peer.message import IncrementalPayload, Payload, Peer
from peer.neighborhood import Neighborhood

BLOCK = 1 << 15
"""Elements of each vector that are converted to float64 at a time, 256 KiB."""

M = TypeVar("M", Tensor, tuple[Tensor, ...])
AggregationRule: TypeAlias = Callable[[Mapping[Peer, float], Mapping[Peer, Tensor]], Tensor]
"""(row of W over those heard, their vectors [d]) -> [d]."""


def accumulator(like: Tensor) -> Tensor:
    """Zeros shaped like `like` [n], float64 if it is, else float32 (also for half-width types)."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def accumulate(into: Tensor, x: Tensor, weight: float) -> None:
    """into += weight·x, in place; both [n], a whole vector or one frame of it."""
    into.add_(x.to(into.dtype), alpha=weight)


def average_into(
    average: Tensor, weight: Mapping[Peer, float], vectors: Mapping[Peer, Tensor]
) -> None:
    """average ← x_a + Σ_j w_j (x_j − x_a), in place; all [n], whole vectors or one frame of them.
    a: the first peer that counts, so nodes that mix the same have the same bits.
    """
    first, *others = (peer for peer in sorted(weight) if weight[peer])
    average.copy_(vectors[first])
    for peer in others:
        three = (average, vectors[first], vectors[peer])
        for into, x_a, x_j in zip(*(torch.split(each, BLOCK) for each in three), strict=True):
            into.add_(x_j.to(into.dtype) - x_a, alpha=weight[peer])


def average(weight: Mapping[Peer, float], vectors: Mapping[Peer, Tensor]) -> Tensor:
    """Σ_j w_j x_j by a row that sums to 1; every x_j is [d]. The vectors are left as they are."""
    result = accumulator(next(iter(vectors.values())))
    average_into(result, weight, vectors)
    return result


def weighted_sum(weight: Mapping[Peer, float], vectors: Mapping[Peer, Tensor]) -> Tensor:
    """Σ_j w_j x_j over the peers of `weight`, in sorted order; every x_j is [d]. The vectors are
    left as they are.
    """
    acc = accumulator(next(iter(vectors.values())))
    for peer in sorted(weight):
        accumulate(acc, vectors[peer], weight[peer])
    return acc


def mixed(weight: Mapping[Peer, float], payloads: Mapping[Peer, M], rule: AggregationRule) -> M:
    """The payloads by the rule (`node.maths.robust`): one vector each, or a tuple of vectors each,
    place by place.
    """
    first = next(iter(payloads.values()))
    if isinstance(first, Tensor):
        return rule(weight, payloads)
    columns = [{peer: payload[k] for peer, payload in payloads.items()} for k in range(len(first))]
    return tuple(rule(weight, column) for column in columns)


def materialize(payload: Payload[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """The payload, filled to the end."""
    if not isinstance(payload, IncrementalPayload):
        return payload
    done = sum(payload.steps)
    assert done == payload.flat.numel(), f"{done} of {payload.flat.numel()} elements were filled"
    return payload.flat


def mixing_row(
    neighborhood: Neighborhood, partners: Set[Peer], weights: Mapping[Peer, float] | None = None
) -> dict[Peer, float]:
    """By what a node mixes with these neighbors only: its row of W, in which the others' weight
    goes to self; or a Mix's own `weights`, in proportion (all zero: the own vector stays)."""
    me = neighborhood.me
    if weights is None:
        return dict(neighborhood.without(frozenset(neighborhood.neighbors) - partners).weight)
    shares = {j: weights.get(j, 0.0) for j in sorted({*partners, me})}
    total = sum(shares.values())
    if not total:
        return {j: float(j == me) for j in shares}
    return {j: share / total for j, share in shares.items()}


def agreed(me: Peer, heard: Set[Peer], headers: Mapping[Peer, Iterable[Peer]]) -> frozenset[Peer]:
    """The neighbors I mix with: those I heard in the phase before, whose header came, and who say
    they heard me.

    An edge lost at one end would let the mean of x drift; lost at both ends, W stays doubly
    stochastic (the weight goes to self, `Neighborhood.without`) and the mean is kept.

    Args:
        heard: whom I heard in the phase before this Mix (an answer withheld is heard); before the
            first phase, and on return, who shook hands. It is what my own header says.
        headers: sender -> the `heard` of the header that came from it for this Mix.
    """
    return frozenset(
        j for j, heard_by_j in headers.items() if j in heard and me in frozenset(heard_by_j)
    )


def consensus_distance(vectors: Sequence[Tensor]) -> float:
    """√(1/N Σ_i ‖x_i − x̄‖²) of N flat vectors [d], in float64, by blocks that fit the cache."""
    total = 0.0
    for start in range(0, vectors[0].numel(), BLOCK):
        block = torch.stack([x[start : start + BLOCK] for x in vectors]).double()
        total += float(block.sub_(block.mean(0)).square_().sum())
    return sqrt(total / len(vectors))
