"""Membership inference: does a curious node find out which records another one has?

LiRA: Carlini et al., "Membership Inference Attacks From First Principles", arXiv 2112.03570. The
experiment is run K times; in each run the owner has every record in question or not, by a coin of
its own. A watcher computes, of every such record z, what

    confidence   ln(p/(1−p)) of the last model that it saw, where p = e^(−ℓ_z)
    steps        Σ_t of z's share in x_t − x̃_t, over the steps from x_t to x̃_t that it saw
    answers      Σ_t of z's share in g̈_t, over the answers to its own questions

are in that run. A share is a coefficient of the regression (ridge, by the noise) of what was seen
on the clipped gradients of all records in question at that model. For each run the others are its
shadow runs: they say how each figure is distributed if z is there, and if not, and the score of z
is the logarithm of the ratio of the two likelihoods (normal, with means of z's own and variances of
all records, widened as means of few runs are not exact).

A neighbor sees what the owner sends: models, and answers to it. A node two hops away sees the
models that one neighbor of the owner sends. Both know the initial parameters, what every other node
has, and play by the rules.

The coins are independent because ε speaks of a record that is added or removed, whatever the other
records are. In halves of a fixed size a record that is there keeps another one out, which is a
record exchanged for another, and of that the bound beside the figures says nothing. With task.unit
a record is a person with all their rows.

Deviations
    * In the paper each record is in exactly half of the models, which pairs of runs would do; with
      so few runs the others would then tell whether it is in this one.
    * Figures are taken for independent of each other. Steps and answers are not in the paper, where
      the attacker sees the last model only.
    * Nothing is trained beside the experiment's own runs: each serves all others as a shadow.
Not covered
    * Other nodes' gradients, which are in a step too, count as noise; who knows their records could
      regress on them as well.
    * A neighbor that chooses its questions sees more of single records (node/audit/inversion.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from node import tasks
from node.audit.lira import Floats, Rate, rate_at, scores
from node.audit.modes import examples_of, owner_of
from node.config import PrivacySection, RunConfig
from node.data.partition import Rows
from node.experiments.in_process import make_learners
from node.experiments.resolve import ResolvedRun
from node.hooks import no_op
from node.maths.per_example import vmapped
from node.privacy.accountant import Mode, Spent
from node.privacy.calibration import release_mechanism
from node.privacy.membership import highest_tpr
from node.privacy.unit_task import by_unit
from node.rounds import lockstep
from node.task import Task, views
from peer.errors import ConfigurationError
from peer.message import Ask, Conversation, Mix, Payload, Peer, step
from peer.neighborhood import View

Watcher = Literal["neighbor", "two hops"]
FALSE_POSITIVES = (0.01, 0.001)
LEAST = 1e-3
LEAST_RECORDS = 32
"""With so many, a run without any is as good as impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What one watcher found out in one mode."""

    watcher: Watcher
    mode: Mode
    runs: int
    records: int
    auc: float
    """How often a member has a higher score than another record; 0.5 is chance."""
    rates: tuple[Rate, ...]
    """At false positive rates of 1 % and 0.1 %, those that so many records can show."""


# -- what a watcher sees ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Tapped:
    """An algorithm, and what it sends to one of its neighbors."""

    algorithm: lockstep.Rounds
    to: Peer
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """From which model to which, round by round."""
    answers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Questions of that neighbor, and what they were answered."""
    last: Tensor | None = None
    """The last model that was sent."""

    def round(self, t: int, view: View) -> Conversation:
        talk = self.algorithm.round(t, view)
        verb = step(talk)
        stepped = False
        while verb is not None:
            if isinstance(verb, Ask):
                verb = replace(verb, answer=self._kept(verb.answer))
            model = _first(verb.tensors)
            if isinstance(verb, Mix) and self.last is not None and not stepped:
                self.steps.append((self.last, model))
                stepped = True
            self.last = model
            reply = yield verb
            verb = step(talk, reply)

    def _kept(self, answer: Callable[[Peer, Tensor], Tensor]) -> Callable[[Peer, Tensor], Tensor]:
        def kept(peer: Peer, question: Tensor) -> Tensor:
            given = answer(peer, question)
            if peer == self.to:
                self.answers.append((question.clone(), given.clone()))
            return given

        return kept


def _first(payload: Payload[Tensor]) -> Tensor:
    vector = payload[0] if isinstance(payload, tuple) else payload
    if not isinstance(vector, Tensor):
        raise ConfigurationError(
            "Membership is inferred from whole models; take an algorithm that sends them, as dpdl "
            "and d-psgd do."
        )
    return vector.detach().clone()


def _figures(task: Task, tapped: _Tapped, privacy: PrivacySection) -> Floats:
    """Confidence, steps, and answers where there are any, of every record: [records, figures]."""
    every = torch.arange(task.num_examples)
    batch = task.batch(every)
    gradients = vmapped(task)
    noised = privacy.mode != "none"
    clip = privacy.clip if noised else float("inf")
    noise = 2 * (privacy.sigma * clip) ** 2 / privacy.rate if noised and privacy.sigma else 0.0

    def shares(model: Tensor, vector: Tensor) -> Tensor:
        each = gradients(views(task.layout, model), batch, every)
        u = torch.cat([each[name].flatten(1) for name, _ in task.layout.fields], 1).double()
        u *= (clip / u.norm(dim=1, keepdim=True)).clamp(max=1.0)
        return ridge(u, vector.double(), noise)

    if tapped.last is None:
        raise ConfigurationError("This algorithm sends nothing, so nobody learns anything of it.")
    columns = [_confidence(task, tapped.last, batch)]
    columns.append(_sum(shares(x, x - moved) for x, moved in tapped.steps))
    if tapped.answers:
        columns.append(_sum(shares(question, given) for question, given in tapped.answers))
    return torch.stack(columns, 1).double().numpy()


def ridge(u: Tensor, vector: Tensor, noise: float) -> Tensor:
    """How much of each row of u [n, d] is in a vector [d], [n]: least squares with a penalty for
    its `noise`, and LEAST of the rows' own length against rounding.
    """
    gram = u @ u.t()
    gram.diagonal().add_(noise + LEAST * float(gram.diagonal().mean()) + 1e-30)
    result: Tensor = torch.linalg.solve(gram, u @ vector)
    return result


def _confidence(task: Task, model: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    parameters = views(task.layout, model)
    losses = vmap(lambda *example: task.loss(parameters, example))(*batch).double()
    return -losses - torch.log1p(-torch.exp(-losses.clamp(min=1e-12)))


def _sum(parts: Iterator[Tensor]) -> Tensor:
    return torch.stack([*parts]).sum(0)


# -- the runs --------------------------------------------------------------------------------------


def infer(
    resolved: ResolvedRun,
    *,
    runs: int = 32,
    records: int = 400,
    seed: int = 0,
    owner: Peer | None = None,
    progress: Callable[[int, int], None] = no_op,
) -> tuple[Membership, ...]:
    """Runs the experiment `runs` times and attacks each run by all others: a neighbor of the owner,
    and a node two hops away where there is one.

    Args:
        runs: 4 at least.
        records: of the owner's, at most; it has each of them in a run with probability ½.
        seed: of these coins, and of noise and batches.
        owner: whose; None: the first node's.
        progress: told how many runs there were, and how many there will be.

    Raises:
        ConfigurationError: the data are not divided here, or the algorithm sends no whole models.
    """
    if runs < 4:
        raise ConfigurationError("LiRA takes 4 runs at least, and better 16 and more.")
    owner = owner_of(resolved, owner)
    resolved, paths = _with_sigma(resolved, owner), _paths(resolved, owner)
    draw = np.random.default_rng(seed)
    examples = examples_of(resolved, owner)
    asked = np.sort(draw.permutation(len(examples))[:records])
    task = by_unit(tasks.make(resolved.run, _rows(examples, asked)), resolved.run.task)
    present = _coins(draw, runs, len(asked))
    figures: dict[Watcher, list[Floats]] = {watcher: [] for watcher in paths}
    for k in range(runs):
        rows = _rows(examples, asked[present[k]])
        seen = _run(_with_rows(resolved, owner, rows, (seed << 32) + k), paths)
        for watcher, tapped in seen.items():
            figures[watcher].append(_figures(task, tapped, resolved.run.privacy))
        progress(k + 1, runs)
    mode, bounds = resolved.run.privacy.mode, _bounds(resolved)
    return tuple(
        _membership(watcher, mode, np.stack(each), present, bounds)
        for watcher, each in figures.items()
    )


def _rows(examples: Sequence[Rows], which: Rows) -> Rows:
    """All rows of these examples."""
    return np.sort(np.concatenate([examples[k] for k in which]))


def _coins(draw: np.random.Generator, runs: int, records: int) -> NDArray[np.bool_]:
    """Which record is there in which run, [runs, records]: each with probability ½.

    Raises:
        ConfigurationError: so few records that some run might have none.
    """
    if records < LEAST_RECORDS:
        raise ConfigurationError(
            f"LiRA takes {LEAST_RECORDS} records of a node at least, and there are {records}; take "
            "fewer nodes."
        )
    return draw.random((runs, records)) < 0.5


def _paths(resolved: ResolvedRun, owner: Peer) -> dict[Watcher, tuple[Peer, Peer]]:
    """Watcher -> who sends what it sees, and to whom."""
    neighborhoods = resolved.plan.neighborhoods
    near = neighborhoods[owner].neighbors
    paths: dict[Watcher, tuple[Peer, Peer]] = {"neighbor": (owner, near[0])}
    for middle in near:
        for far in neighborhoods[middle].neighbors:
            if far != owner and far not in near:
                paths.setdefault("two hops", (middle, far))
    return paths


def _with_sigma(resolved: ResolvedRun, owner: Peer) -> ResolvedRun:
    """The run with its noise written down, so that it is calibrated once."""
    d = tasks.make(resolved.run, resolved.parts[owner][:1]).layout.size
    if not (sigma := resolved.plan.sigma(d)):
        return resolved
    privacy = resolved.run.privacy.model_copy(update={"epsilon": None, "sigma": sigma})
    return _with_run(resolved, resolved.run.model_copy(update={"privacy": privacy}))


def _with_run(resolved: ResolvedRun, run: RunConfig) -> ResolvedRun:
    return replace(resolved, run=run, plan=replace(resolved.plan, run=run))


def _with_rows(resolved: ResolvedRun, owner: Peer, rows: Rows, seed: int) -> ResolvedRun:
    """The run with these rows for the owner's, its noise and secret batches drawn from a seed."""
    privacy = resolved.run.privacy.model_copy(update={"insecure_seed": seed})
    run = resolved.run.model_copy(update={"privacy": privacy})
    return replace(_with_run(resolved, run), parts={**resolved.parts, owner: rows})


def _run(
    resolved: ResolvedRun, paths: Mapping[Watcher, tuple[Peer, Peer]]
) -> dict[Watcher, _Tapped]:
    """One run, and what each watcher saw of it."""
    learners = make_learners(resolved)
    algorithms: dict[Peer, lockstep.Rounds] = {
        name: learner.algorithm for name, learner in learners.items()
    }
    seen: dict[Watcher, _Tapped] = {}
    for watcher, (sender, to) in paths.items():
        algorithms[sender] = seen[watcher] = _Tapped(learners[sender].algorithm, to)
    try:
        lockstep.run(
            algorithms,
            resolved.plan.neighborhoods,
            resolved.run.train.rounds,
            mix=resolved.run.mix,
            bounds=next(iter(learners.values())).bounds,
        )
    finally:
        for learner in learners.values():
            if learner.ledger is not None:
                learner.ledger.close()
    return seen


def _bounds(resolved: ResolvedRun) -> dict[float, float]:
    """False positive rate -> the largest true one that the run's noise allows anybody."""
    run, releases = resolved.run, resolved.plan.releases
    mechanism = release_mechanism(
        run.privacy, d=0, sigma=run.privacy.sigma or 0.0, releases=releases, unit=run.task.unit
    )
    spent = [Spent(mechanism, mechanism.compositions(run.train.rounds))]
    return {share: highest_tpr(spent, share) for share in FALSE_POSITIVES}


def _membership(
    watcher: Watcher,
    mode: Mode,
    figures: Floats,
    present: NDArray[np.bool_],
    bounds: Mapping[float, float],
) -> Membership:
    score = scores(figures, present)
    members, others = score[present], np.sort(score[~present])
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return Membership(
        watcher=watcher,
        mode=mode,
        runs=len(present),
        records=present.shape[1],
        auc=float(below.mean()) / (2 * len(others)),
        rates=tuple(
            rate_at(members, others, share, bound=bound)
            for share, bound in bounds.items()
            if len(others) * share >= 1
        ),
    )
