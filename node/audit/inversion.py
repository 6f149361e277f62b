"""Gradient inversion: what a neighbor that chooses its own model sees of the records behind an
answer.

A cross-gradient is taken at the NEIGHBOR's parameters, so the neighbor picks the weights. It asks
the same model in every round of the run, and averages what the owner's gate released: the most
that its link gives away of a few records. The owner has no others, so that nothing else hides
them.

trap        Boenisch et al., "When the Curious Abandon Honesty", arXiv 2112.02918; with biases from
            quantiles, as in Fowl et al., "Robbing the Fed", arXiv 2110.13057. A unit i of the first
            layer is awake for about one record in b; where it is one alone,
            (∂ℓ/∂W_i) / (∂ℓ/∂bias_i) is that record, to the last digit.
optimized   Geiping et al., "Inverting Gradients", arXiv 2003.14053: records are sought whose
            gradient at the run's initial parameters has the direction of the answer. Nothing is
            falsified, and the labels are known to the attacker, as in the paper.

Deviations
    * Quantiles are taken of the neighbor's own records, which may be of other classes.
    * For b = 1 one unit is awake for everything, so that all of the clipped norm is in its row.
    * A model of one layer has a row for each class: of several records it gives mixtures only.
    * With task.unit a person has one record, behind which no others of theirs hide it.
    * Without total variation; a guess is held to the range of the neighbor's own records.
Chance is what the same guesses correlate with as many records of the owner that the gate never
saw: images of digits are alike, so it is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from node import tasks
from node.audit.modes import examples_of, owner_of
from node.audit.traps import rows_of, trap
from node.data.partition import Rows
from node.experiments.resolve import ResolvedRun
from node.learning.build import build
from node.learning.learner import Learner
from node.maths.chunks import LANES
from node.privacy.accountant import Mode
from node.privacy.ledger import Ledger
from node.task import Task, views
from peer.errors import ConfigurationError
from peer.message import Peer

Attack = Literal["trap", "optimized"]
RECOVERED = 0.99
"""A correlation above this is the record itself, for anybody who looks at it."""
SHOWN = 8
"""Records that a result keeps beside their guesses."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inversion:
    """What one attack made of the answers of one mode."""

    attack: Attack
    mode: Mode
    batch: int
    """Records that the owner has: in mode none all are in each batch, else each with probability
    q.
    """
    rounds: int
    """Answers that were averaged."""
    records: int
    """Attacked, over all repetitions."""
    recovered: int
    """Of them, with a guess of a correlation above 0.99."""
    correlation: float
    """Median over the records of the best guess's correlation."""
    chance: float
    """The same of records that the gate never saw."""
    auc: float
    """How often a record is guessed better than one that the gate never saw; 0.5 is chance."""
    originals: Tensor
    """Some of the records, [k, channels, height, width]."""
    guesses: Tensor
    """The best guess of each, in its brightness and contrast."""

    @property
    def share(self) -> float:
        """Of the records, recovered."""
        return self.recovered / self.records


@dataclass(frozen=True, slots=True)
class _Scene:
    """Who attacks whom, and with what."""

    resolved: ResolvedRun
    """In mode none every batch has all of the few records."""
    owner: Peer
    neighbor: Peer
    task: Task
    """Of all records of the owner."""
    known: Tensor
    """The neighbor's own records, [n, channels, height, width]."""
    sigma: float
    seed: int

    @property
    def rounds(self) -> int:
        """How often it is worth to ask: without noise all answers are equal."""
        return 1 if self.resolved.run.privacy.mode == "none" else self.resolved.run.train.rounds

    def learner(self, rows: Rows, k: int) -> Learner:
        """The owner, if it had no other records than these; in repetition k, as noise and batches
        are drawn anew.
        """
        run = self.resolved.run
        private: dict[str, object] = {
            "insecure_seed": (self.seed << 32) + k,
            "max_examples": len(rows),  # no time is spent on looking as if there were more
            "chunk": LANES,
        }
        if run.privacy.mode == "none":
            private["batch"] = len(rows)
        run = run.model_copy(update={"privacy": run.privacy.model_copy(update=private)})
        plan = replace(self.resolved.plan, run=run)
        ledger = None if run.privacy.mode == "none" else Ledger.in_memory()
        return build(plan, self.owner, rows, ledger=ledger, sigma=self.sigma)

    def answer(self, rows: Rows, k: int, x: Tensor) -> Tensor:
        """What the gate released at x in every round, averaged: flat float32 [d]."""
        learner = self.learner(rows, k)
        to = self.neighbor if self.resolved.plan.algorithm.ANSWERS else self.owner
        answers = (learner.gate(x, t, to) for t in range(self.rounds))
        try:
            return torch.stack([*answers]).double().mean(0).float()
        finally:
            if learner.ledger is not None:
                learner.ledger.close()


def invert(
    resolved: ResolvedRun,
    attack: Attack,
    *,
    batch: int = 1,
    records: int = 32,
    seed: int = 0,
    owner: Peer | None = None,
    steps: int = 300,
) -> Inversion:
    """Attacks `records` of a node's records, `batch` at a time, through its real gate.

    Args:
        records: rounded down to a multiple of `batch`.
        seed: of the records, the traps, the noise.
        owner: whose; None: the first node's.
        steps: of the optimized attack.

    Raises:
        ConfigurationError: the data are not divided here, the owner has too few of them, or the
            model is none that the attack knows.
    """
    scene = _scene(resolved, owner, seed)
    attacked, unseen = _drawn(scene, records, batch)
    rows = scene.resolved.parts[scene.owner]
    parts = [rows[each.numpy()] for each in attacked]
    if attack == "trap":
        guesses = _trapped(scene, parts, batch)
    else:
        labels = torch.stack([scene.task.batch(each)[1] for each in attacked])
        guesses = _optimized(scene, parts, labels, steps)
    return _result(scene, attack, batch, guesses, attacked, unseen)


def _drawn(scene: _Scene, records: int, batch: int) -> Tensor:
    """Places of records that are attacked, and of as many that are not, sorted in each repetition:
    [2, repetitions, batch].

    Raises:
        ConfigurationError: the owner has too few.
    """
    repetitions = max(1, records // batch)
    count, there = 2 * repetitions * batch, scene.task.num_examples
    if count > there:
        raise ConfigurationError(
            f"{scene.owner} has {there} records, and inverting {count // 2} of them takes {count}; "
            "lower the number, or the number of nodes."
        )
    places = np.random.default_rng(scene.seed).permutation(there)[:count]
    return torch.from_numpy(places).view(2, repetitions, batch).sort(-1).values


def _scene(resolved: ResolvedRun, owner: Peer | None, seed: int) -> _Scene:
    me = owner_of(resolved, owner)
    rows = np.sort(np.array([each[0] for each in examples_of(resolved, me)]))
    resolved = replace(resolved, parts={**resolved.parts, me: rows})
    neighbor = resolved.plan.neighborhoods[me].neighbors[0]
    whole = tasks.make(resolved.run, resolved.parts[me])
    known = tasks.make(resolved.run, resolved.parts[neighbor])
    images = known.batch(torch.arange(known.num_examples))[0]
    sigma = resolved.plan.sigma(whole.layout.size)
    return _Scene(resolved, me, neighbor, whole, images, sigma, seed)


# -- the two attacks -------------------------------------------------------------------------------


def _trapped(scene: _Scene, parts: Sequence[Rows], batch: int) -> list[Tensor]:
    x = trap(scene.task, scene.known, batch, scene.seed)
    return [
        rows_of(scene.task.layout, scene.answer(part, k, x), batch) for k, part in enumerate(parts)
    ]


def _optimized(scene: _Scene, parts: Sequence[Rows], labels: Tensor, steps: int) -> list[Tensor]:
    x = scene.task.initial_parameters(scene.resolved.run.train.seed)
    answers = torch.stack([scene.answer(part, k, x) for k, part in enumerate(parts)])
    shape = (*labels.shape, *scene.known.shape[1:])
    draw = torch.Generator().manual_seed(scene.seed)
    low, high = scene.known.min(), scene.known.max()
    guess = low + (high - low) * torch.rand(shape, generator=draw)
    return [*match(scene.task, x, answers, guess, labels, steps).flatten(2)]


def match(
    task: Task, x: Tensor, answers: Tensor, guess: Tensor, labels: Tensor, steps: int
) -> Tensor:
    """Records [n, b, channels, height, width] with these labels [n, b] whose mean gradients at x
    have the directions of the answers [n, d]: 1 − cos by Adam, its step falling to zero, from
    `guess` and within its range.
    """
    low, high = float(guess.min()), float(guess.max())
    guess = guess.clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=0.1 * (high - low))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parameters = views(task.layout, x)

    def loss(leaves: dict[str, Tensor], images: Tensor, y: Tensor) -> Tensor:
        return task.mean_loss(leaves, (images, y))

    gradient = vmap(grad(loss), in_dims=(None, 0, 0))
    for _ in range(steps):
        each = gradient(parameters, guess, labels)
        vectors = torch.cat([each[name].flatten(1) for name, _ in task.layout.fields], 1)
        apart = (1 - torch.cosine_similarity(vectors, answers)).sum()
        guess.grad = torch.autograd.grad(apart, guess)[0]
        optimizer.step()
        falling.step()
        guess.data.clamp_(low, high)
    return guess.detach()


# -- what came out ---------------------------------------------------------------------------------


def correlations(guesses: Tensor, records: Tensor) -> Tensor:
    """Of each guess [k, m] with each record [n, m], without its sign, as a negative shows the same:
    [k, n]; 0 where one is constant or not finite.
    """
    centered = [each - each.mean(1, keepdim=True) for each in (guesses.double(), records.double())]
    a, b = (each / each.norm(dim=1, keepdim=True) for each in centered)
    result: Tensor = (a @ b.t()).abs().nan_to_num(0.0, 0.0, 0.0)
    return result


def _result(
    scene: _Scene,
    attack: Attack,
    batch: int,
    guesses: Sequence[Tensor],
    attacked: Tensor,
    unseen: Tensor,
) -> Inversion:
    best, other, originals, shown = [], [], [], []
    for guess, mine, strange in zip(guesses, attacked, unseen, strict=True):
        records = scene.task.batch(mine)[0]
        correlation, which = correlations(guess, records.flatten(1)).max(0)
        best.append(correlation)
        strangers = scene.task.batch(strange)[0].flatten(1)
        other.append(correlations(guess, strangers).max(0).values)
        originals.append(records)
        shown.append(_in_contrast_of(records, guess[which]))
    hits, misses = torch.cat(best), torch.cat(other)
    return Inversion(
        attack=attack,
        mode=scene.resolved.run.privacy.mode,
        batch=batch,
        rounds=scene.rounds,
        records=len(hits),
        recovered=int((hits > RECOVERED).sum()),
        correlation=float(hits.median()),
        chance=float(misses.median()),
        auc=float((hits.unsqueeze(1) > misses).double().mean()),
        originals=torch.cat(originals)[:SHOWN],
        guesses=torch.cat(shown)[:SHOWN],
    )


def _in_contrast_of(records: Tensor, guesses: Tensor) -> Tensor:
    """The guesses [n, m] with mean and deviation of their records [n, …]."""
    wanted, given = records.flatten(1), guesses.nan_to_num(0.0, 0.0, 0.0)
    deviation = given.std(1, keepdim=True).clamp(min=1e-12)
    normal = (given - given.mean(1, keepdim=True)) / deviation
    scaled = normal * wanted.std(1, keepdim=True) + wanted.mean(1, keepdim=True)
    return scaled.view_as(records)
