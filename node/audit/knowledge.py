"""What curious nodes know if nobody adds noise: El Mrini, Cyffers, Bellet, "Privacy attacks in
decentralized learning", arXiv 2402.10001.

Everything that an algorithm says is a weighted sum of the releases made so far: gradients of node i
in round t. Row by row, what the curious hear is a matrix over all releases of the others, the
knowledge matrix K; their own are known to them and have no columns. A release can be computed
exactly if its unit vector lies in the row space of K. With noise they know it as far as that
vector's projection is long.

K is not written down from W for each algorithm: the algorithm itself runs, from zero and with unit
vectors in place of gradients, and what the curious hear are the rows.

Deviations
    * The paper's nodes send their model after a local step, or average values once; here it is
      whatever the algorithm sends.
    * Weights that depend on gradients (DPDL's cosines, CGA's projection) are what they are for
      orthogonal ones: nearly so where noise is longer than the gradient. Weights by Shapley values
      (ROSS, PDSL) are those of neighbors that are all worth the same, W.
Not covered
    * What a curious node learns from the values themselves, such as a record that can be seen in a
      sum of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from node.audit import Finding, Options, Unfit, check_names
from node.audit.overheard import Place, notes, participants
from node.experiments.report.tables import Grid
from node.experiments.resolve import ResolvedRun
from node.learning.plan import Plan
from node.maths.blocks import Block
from node.rounds import lockstep
from node.rounds.lockstep import Neighborhoods
from peer.message import Layout, Peer

ROUNDS = 10
"""Of a run that are looked at: what was not worked out by then, hardly ever is."""
LARGEST = 1500
"""Columns of K: seconds, and some ten MB."""
EXACT = 1e-6
"""A release whose projection on the row space is longer than 1 less this is known."""
RANK = 1e-10
"""Singular values below this part of the largest are rounding."""

Release = tuple[Peer, int, Peer]
"""Whose gradient, in which round, for whom."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Knowledge:
    """What the curious hear, in terms of the others' releases."""

    curious: tuple[Peer, ...]
    releases: tuple[Release, ...]
    places: tuple[Place, ...]
    matrix: Tensor
    """K, float64 [len(places), len(releases)]."""

    def known(self) -> list[Release]:
        """The releases that can be computed exactly."""
        if not self.places:
            return []
        _, values, rows = torch.linalg.svd(self.matrix, full_matrices=False)
        within = rows[values > RANK * values[0]].square().sum(0)
        return [
            release
            for release, share in zip(self.releases, within.tolist(), strict=True)
            if share > 1 - EXACT
        ]


class _Unit:
    """A gate whose releases are unit vectors."""

    def __init__(self, me: Peer, columns: dict[Release, int], d: int) -> None:
        self._me, self._columns, self._d = me, columns, d

    def __call__(self, x: Tensor, t: int, to: Peer) -> Tensor:
        gradient = torch.zeros(self._d, dtype=torch.float64)
        if (column := self._columns.get((self._me, t, to))) is not None:
            gradient[column] = 1.0
        return gradient

    def own(self, x: Tensor, t: int) -> Tensor:
        return self(x, t, self._me)

    def difference(self, x: Tensor, before: Tensor, t: int) -> Tensor:
        return self(x, t, self._me)

    def within(self, x: Tensor, block: Block) -> Callable[[Tensor, int], Tensor]:
        raise AssertionError("algorithms that train blocks need layers, and are refused")


def knowledge(plan: Plan, curious: Collection[Peer], rounds: int) -> Knowledge:
    """What these nodes know after so many rounds.

    Raises:
        Unfit: the algorithm's messages are no weighted sums of releases.
    """
    releases = [*_releases(plan, curious, rounds)]
    d = max(1, len(releases))
    columns = {release: k for k, release in enumerate(releases)}
    rows: dict[Place, Tensor] = {}
    algorithms = participants(
        plan,
        lambda me: _Unit(me, columns, d),
        curious,
        rows.setdefault,
        layout=Layout((("releases", (d,)),)),
        start=torch.zeros(d, dtype=torch.float64),
    )
    lockstep.run(algorithms, plan.neighborhoods, rounds)
    heard = {place: row.clone() for place, row in sorted(rows.items())}
    return Knowledge(
        curious=tuple(sorted(curious)),
        releases=tuple(releases),
        places=tuple(heard),
        matrix=torch.stack([*heard.values()]) if heard else torch.zeros(0, d, dtype=torch.float64),
    )


def _releases(plan: Plan, curious: Collection[Peer], rounds: int) -> Iterator[Release]:
    """All that are not the curious nodes' own, in the order of columns."""
    for me, neighborhood in sorted(plan.neighborhoods.items()):
        recipients = [me, *(neighborhood.neighbors if plan.algorithm.ANSWERS else ())]
        if me not in curious:
            yield from ((me, t, to) for t, to in product(range(rounds), recipients))


def room(plan: Plan) -> int:
    """For how many rounds at most K is worked out."""
    a_round = sum(plan.algorithm.releases(it.degree) for it in plan.neighborhoods.values())
    return max(1, min(plan.run.train.rounds, LARGEST // a_round))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What the curious know of one node without noise."""

    node: Peer
    hops: int
    """From the nearest of them."""
    known: int
    of: int
    """Its releases in these rounds."""
    last: int | None
    """The last round of which one is known."""


def reconstructions(plan: Plan, curious: Collection[Peer], rounds: int) -> list[Reconstruction]:
    """Of every other node, the nearest first, from what is said in so many rounds.

    Raises:
        Unfit: see `knowledge`; or all are curious.
    """
    heard = knowledge(plan, curious, rounds)
    if not heard.releases:
        raise Unfit("All nodes are curious, so there is nobody to learn of.")
    known, away = heard.known(), hops(plan.neighborhoods, curious)
    mine = {name: [it for it in known if it[0] == name] for name in plan.neighborhoods}
    return [
        Reconstruction(
            node=name,
            hops=away[name],
            known=len(mine[name]),
            of=sum(it[0] == name for it in heard.releases),
            last=max((t for _, t, _ in mine[name]), default=None),
        )
        for name in sorted(plan.neighborhoods, key=lambda name: (away[name], name))
        if name not in curious
    ]


def hops(neighborhoods: Neighborhoods, sources: Collection[Peer]) -> dict[Peer, int]:
    """How far every node is from the nearest of these."""
    away, edge, distance = dict.fromkeys(sorted(sources), 0), set(sources), 0
    while edge:
        distance += 1
        edge = {j for i in edge for j in neighborhoods[i].neighbors} - away.keys()
        away |= dict.fromkeys(sorted(edge), distance)
    return away


def audit(resolved: ResolvedRun, options: Options) -> Sequence[Finding]:
    """Of the curious nodes; where none are named, of the first node alone."""
    curious = options.curious or (min(resolved.plan.neighborhoods),)
    options.say(f"knowledge: {', '.join(curious)}")
    return [finding(resolved.plan, curious, options.rounds)]


def finding(plan: Plan, curious: Sequence[Peer], rounds: int | None = None) -> Finding:
    """What these nodes could reconstruct without noise.

    Raises:
        ConfigurationError: see `reconstructions`; or one of them is none of the run's.
    """
    check_names(plan, curious)
    rounds = min(rounds or ROUNDS, ROUNDS, room(plan))
    results = reconstructions(plan, curious, rounds)
    table = grid(curious, rounds, results)
    return Finding(
        table=replace(table, notes=(*table.notes, *notes(plan))),
        document=document(curious, rounds, results),
    )


def document(
    curious: Sequence[Peer], rounds: int, results: Sequence[Reconstruction]
) -> dict[str, object]:
    """For programs."""
    return {
        "curious": list(curious),
        "rounds": rounds,
        "nodes": {
            it.node: {"hops": it.hops, "known": it.known, "of": it.of, "last_round": it.last}
            for it in results
        },
    }


def grid(curious: Sequence[Peer], rounds: int, results: Sequence[Reconstruction]) -> Grid:
    """For people."""
    rows = [
        (it.node, str(it.hops), f"{it.known} of {it.of}", "–" if it.last is None else str(it.last))
        for it in results
    ]
    return Grid(
        title=f"What {', '.join(curious)} could reconstruct of {rounds} rounds without noise",
        head=("node", "hops", "its releases that are known", "of round, at last"),
        rows=tuple(rows),
        notes=(
            "from graph and algorithm alone, by the rank of what is heard; noise is what protects "
            "these releases, and ε_total supposes that all of them are known",
        ),
    )
