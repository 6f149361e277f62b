"""An experiment in one process: all nodes of `[experiment]` with the plain driver, and their
summary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from node.attacks import Attack
from node.config import ExperimentConfig, RunConfig
from node.experiments.resolve import ResolvedRun, resolve
from node.experiments.run_folder import metrics_of_average, save_average, with_average
from node.figures import document, headline_text
from node.hooks import no_op
from node.learning.averaged import last_model
from node.learning.build import build
from node.learning.learner import Learner
from node.maths.mixing import consensus_distance
from node.privacy.ledger import Ledger
from node.records import summary
from node.records.checkpoint import MODEL
from node.records.journal import Journal, header
from node.records.summary import Summary
from node.rounds import lockstep
from peer.errors import PeerpoiseError
from peer.files import ensure_dir
from peer.message import Peer

Progress = Callable[[int, int, Mapping[Peer, str]], None]
"""(rounds finished, rounds, each node's headline metric as last evaluated, for people)."""


def simulate(config: ExperimentConfig, folder: Path, progress: Progress = no_op) -> Summary:
    """As `run`, of an experiment that is resolved first."""
    return run(resolve(config), folder, progress)


def run(resolved: ResolvedRun, folder: Path, progress: Progress = no_op) -> Summary:
    """Runs the whole experiment and writes what it leaves: RUN/summary.json, the average model, and
    each node's model, summary and journal.

    The consensus distance in the journals is that of all nodes together, where the run is
    evaluated.

    Ledgers are kept in memory: whatever own data give away so is counted nowhere.

    Raises:
        ConfigurationError, DataError: one sentence.
    """
    resolved.check_data()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        return _run(resolved, folder, progress, stack)


def _run(resolved: ResolvedRun, folder: Path, progress: Progress, stack: ExitStack) -> Summary:
    """As `run`; the journals are closed with the stack."""
    learners = make_learners(resolved)
    slow = {it.gate.choice.slow for it in learners.values() if it.gate.choice} - {""}
    for sentence in sorted(slow):
        print(f"peerpoise: {sentence}", file=sys.stderr)
    homes = {name: ensure_dir(folder / "nodes" / name) for name in learners}
    journals = {
        name: stack.enter_context(closing(_journal(homes[name], learner)))
        for name, learner in learners.items()
    }
    recorder = _Recorder(resolved.run, learners, journals, progress)
    first = next(iter(learners.values()))
    lockstep.run(
        {name: learner.algorithm for name, learner in learners.items()},
        first.plan.neighborhoods,
        resolved.run.train.rounds,
        mix=resolved.run.mix,
        bounds=first.bounds,
        after_phase=recorder.after_phase,
        after_round=recorder.after_round,
    )
    summaries = recorder.summaries(test_public=not resolved.own)
    for name, learner in learners.items():
        _keep(homes[name], learner, journals[name], summaries[name])
    merged = summary.merge(
        list(summaries.values()), {n: it.algorithm.parameters for n, it in learners.items()}
    )
    honest = {name: it for name, it in learners.items() if not it.attack}
    first = next(iter(honest.values()))
    parameters = {n: (it.task.layout, it.algorithm.parameters) for n, it in honest.items()}
    average = save_average(folder / MODEL, parameters, first.about_model)
    task = first.task
    tested = {} if resolved.own else metrics_of_average(lambda: task.evaluate(average))
    return with_average(folder, merged, tested)


class _Recorder:
    """Keeps the journals while the rounds run, and what the summaries are made of."""

    def __init__(
        self,
        run: RunConfig,
        learners: Mapping[Peer, Learner],
        journals: Mapping[Peer, Journal],
        progress: Progress,
    ) -> None:
        self.run, self.learners, self.journals, self.progress = run, learners, journals, progress
        self.metrics: dict[Peer, dict[str, float]] = {}
        """As last evaluated."""
        self.sent = dict.fromkeys(learners, 0)
        self.clock = [time.perf_counter()]
        """When it began, and when each round ended."""

    def after_phase(self, t: int, phase: int, kind: str, sent: Mapping[Peer, int]) -> None:
        for name, journal in self.journals.items():
            self.sent[name] += sent[name]
            journal.write("phase", round=t, phase=phase, kind=kind, bytes_sent=sent[name])

    def after_round(self, t: int) -> None:
        self.clock.append(time.perf_counter())
        rounds, every = self.run.train.rounds, self.run.train.evaluate_every
        apart: dict[str, float] = {}
        if t + 1 == rounds or (every and (t + 1) % every == 0):
            honest = [last_model(it.algorithm) for it in self.learners.values() if not it.attack]
            apart["consensus_distance"] = consensus_distance(honest)
            self._evaluate(t)
        for name, learner in self.learners.items():
            self.journals[name].write(
                "round",
                round=t,
                seconds=self.clock[-1] - self.clock[-2],
                diagnostics=learner.diagnostics(),
                **apart,
            )
        tested = {
            name: headline_text(self.learners[name].task.metrics, measured)
            for name, measured in self.metrics.items()
        }
        self.progress(t + 1, rounds, tested)

    def _evaluate(self, t: int) -> None:
        delta = self.run.privacy.delta
        for name, learner in self.learners.items():
            journal = self.journals[name]
            self.metrics[name] = learner.evaluate(warn=partial(_warn, journal))
            if self.metrics[name]:
                journal.write("test", round=t, metrics=self.metrics[name])
            if learner.ledger is not None:
                live = learner.live_epsilon(delta)
                journal.write("epsilon", **learner.spent(t, live, delta))

    def summaries(self, *, test_public: bool) -> dict[Peer, Summary]:
        """Every node's, once the last round has ended."""
        round_seconds = [after - before for before, after in pairwise(self.clock)]
        return {
            name: learner.summarize(
                rounds_run=self.run.train.rounds,
                metrics=self.metrics[name],
                measured=learner.diagnostics(),
                bytes_sent=self.sent[name],
                test_public=test_public,
                round_seconds=summary.seconds(round_seconds),
                wall_seconds=self.clock[-1] - self.clock[0],
            )
            for name, learner in self.learners.items()
        }


def _keep(home: Path, learner: Learner, journal: Journal, result: Summary) -> None:
    """A node's model and summary, and the end of its journal."""
    learner.save_model(home / MODEL)
    summary.write(home / "summary.json", result)
    journal.write(
        "end",
        reason="diverged" if result.diverged else "finished",
        complete=result.complete,
        params_digest=result.params_digest[learner.name],
        wall_seconds=result.wall_seconds,
        metrics={name: it.per_node[learner.name] for name, it in result.task_metrics.items()},
        epsilon=learner.stated(result.privacy),
    )


def _warn(journal: Journal, error: PeerpoiseError) -> None:
    journal.write("warning", text=error.brief)
    print(f"warning: {error}", file=sys.stderr)


def make_learners(resolved: ResolvedRun) -> dict[Peer, Learner]:
    """Every node's; σ and the initial parameters are computed once."""
    experiment, mode = resolved.experiment.experiment, resolved.run.privacy.mode
    learners: dict[Peer, Learner] = {}
    sigma = start = None
    for name, data in resolved.data.items():
        section = experiment.attack_of(name)
        learner = build(
            resolved.plan,
            name,
            data,
            ledger=None if mode == "none" else Ledger.in_memory(),
            sigma=sigma,
            start=start,
            device=experiment.device,
            attack=Attack.of(section) if section else None,
        )
        learners[name] = learner
        sigma = learner.sigma
        start = learner.algorithm.parameters if start is None else start
    return learners


def _journal(home: Path, learner: Learner) -> Journal:
    run = learner.run
    about = header(
        run.model_dump(mode="json"),
        node=learner.name,
        run=run.run_id,
        seed=run.train.seed,
        threads=1,
    )
    journal = Journal(home / "journal.jsonl", about)
    if choice := learner.gate.choice:
        journal.write("backend", backend=choice.backend, reason=choice.reason)
    journal.write(
        "figures",
        metrics=document(learner.task.metrics),
        diagnostics=document(learner.plan.algorithm.DIAGNOSTICS),
    )
    for text in (learner.plan.warning, learner.attack and learner.attack.warning):
        if text:
            journal.write("warning", text=text)
    return journal
