"""One cell: the experiment is simulated, and what tables and plots need is read from its journals
and summary.

Everything is plain JSON:

    rounds            rounds finished at each evaluation [e]
    declared          metrics and diagnostics as task and algorithm declare them (`node.figures`)
    metrics           test metric -> node -> [e], honest nodes only
    bytes             payload bytes a node has sent by then, mean over the nodes [e]
    tokens            of the own answers by then, mean over the nodes [e]; null where none are drawn
    seconds           of training by then [e]
    distance          consensus distance √(1/N Σ‖x_i − x̄‖²) [e]
    epsilon           total and link [e], by Rényi divergence (looser than the summary's), what ε is
                      under; null without privacy
    weights           kind -> node -> neighbor -> [e], mean over rounds since the last evaluation;
                      null where it was never recorded
    attackers         nodes that lie, in none of the figures above
    summary           what `simulate` writes
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from node.config import ExperimentConfig
from node.encoding import Json
from node.experiments import in_process
from node.experiments.resolve import resolve
from node.experiments.sweep import code
from node.learning.plan import Plan
from node.privacy.accountant import epsilon_total
from node.privacy.calibration import release_mechanism
from node.records import checkpoint, journal
from node.records.checkpoint import MODEL
from node.records.summary import Summary
from peer.message import Peer

CONDITIONS = ("mode", "batches", "adjacency", "delta", "accountant", "against")

Events = Sequence[Json]
Column = list[float | None]
Progress = Callable[[float], None]
"""Of the share of its rounds a cell has finished."""


def run_trial(
    configuration: Json, progress: Progress = lambda share: None, scratch: str | None = None
) -> Json:
    """A cell's record. It has a folder in `scratch` while it runs; None: among the system's
    temporary ones.

    Raises:
        PeerpoiseError: one sentence; anything else is a bug.
    """
    config = ExperimentConfig(**configuration)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="peerpoise-cell-", dir=scratch) as name:
        folder = Path(name)
        resolved = resolve(config)
        summary = in_process.run(
            resolved, folder, lambda done, rounds, tested: progress(done / rounds)
        )
        measured = figures(folder, summary)
        if config.privacy.mode == "paper":
            measured["accounted"] = accounted(resolved.plan, summary, folder / MODEL)
    return {
        "configuration": config.model_dump(mode="json"),
        "code": code.version(config.algorithm.name, config.task.name),
        "version": journal.code_version(),
        "torch": journal.code_version("torch"),
        "machine": platform.machine(),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "figures": measured,
    }


def figures(folder: Path, summary: Summary) -> Json:
    """What a run folder of `simulate` says."""
    summary_values = summary.model_dump(mode="json")
    attackers = sorted(summary_values.get("attackers") or ())
    journals = {
        path.parent.name: journal.read(path)
        for path in sorted(folder.glob("nodes/*/journal.jsonl"))
    }
    honest = {
        name: events for name, events in journals.items() if name not in attackers
    } or journals
    first = next(iter(honest.values()))
    rounds_run = [it for it in first if it["event"] == "round"]
    rounds = [it["round"] + 1 for it in first if it["event"] == "test"]
    tests = {
        name: [it for it in events if it["event"] == "test"] for name, events in honest.items()
    }
    declared = next(it for it in first if it["event"] == "figures")
    measured = {name for events in tests.values() for it in events for name in it["metrics"]}
    return {
        "rounds": rounds,
        "declared": {kind: declared[kind] for kind in ("metrics", "diagnostics")},
        "metrics": {
            metric["name"]: {
                node: [it["metrics"].get(metric["name"]) for it in events]
                for node, events in tests.items()
            }
            for metric in declared["metrics"]
            if metric["name"] in measured
        },
        "bytes": _mean(
            [_sums(events, "phase", "bytes_sent", rounds) for events in honest.values()]
        ),
        "tokens": _tokens(list(honest.values()), rounds),
        "seconds": _sums(first, "round", "seconds", rounds),
        "distance": [
            it.get("consensus_distance") for it in rounds_run if it["round"] + 1 in rounds
        ],
        "epsilon": _epsilon(list(honest.values())),
        "weights": _weights(honest, rounds),
        "attackers": attackers,
        "summary": summary_values,
    }


def accounted(plan: Plan, summary: Summary, model: Path) -> float | None:
    """Of a run in mode paper: ε_total of its noised answers alone, by PLD. Less than the truth: the
    own gradient enters what is sent without noise of its own. None: there is none."""
    privacy, sigma = plan.run.privacy, summary.privacy.sigma or 0.0
    _, x = checkpoint.load_model(model)
    answers = release_mechanism(
        privacy, d=x.numel(), sigma=sigma, releases=plan.releases, unit=plan.run.task.unit
    )
    total = epsilon_total(replace(answers, mode="strict"), plan.run.train.rounds, privacy.delta)
    return total if total < float("inf") else None


def _tokens(journals: Sequence[Events], rounds: Sequence[int]) -> list[float] | None:
    """Of answers that were drawn, by node; None: the algorithm draws none."""
    rounds_of = [
        [it | it["diagnostics"] for it in events if it["event"] == "round"] for events in journals
    ]
    if not any("tokens" in it for events in rounds_of for it in events):
        return None
    return _mean([_sums(events, "round", "tokens", rounds) for events in rounds_of])


def _sums(events: Events, event: str, field: str, rounds: Sequence[int]) -> list[float]:
    """A field of an event, summed up to each of these rounds."""
    each = [(it["round"] + 1, it.get(field) or 0) for it in events if it["event"] == event]
    return [sum(value for t, value in each if t <= until) for until in rounds]


def _mean(columns: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]


def _epsilon(journals: Sequence[Events]) -> dict[str, object] | None:
    """The largest of all nodes, evaluation by evaluation."""
    by_node = [[it for it in events if it["event"] == "epsilon"] for events in journals]
    if not by_node or not by_node[0]:
        return None
    worst = {
        scope: [_largest(it[scope] for it in each) for each in zip(*by_node, strict=True)]
        for scope in ("total", "link")
    }
    return worst | {key: by_node[0][-1].get(key) for key in CONDITIONS}


def _largest(values: Iterable[float | None]) -> float | None:
    """None (not finite) if any of them is."""
    numbers = list(values)
    return None if None in numbers else max(value for value in numbers if value is not None)


def _weights(
    journals: Mapping[Peer, Events], rounds: Sequence[int]
) -> dict[str, dict[Peer, dict[Peer, Column]]]:
    """Every figure per neighbor that the rounds of a journal tell."""
    weights: dict[str, dict[Peer, dict[Peer, Column]]] = {}
    for name, events in journals.items():
        observed: dict[tuple[str, Peer], list[tuple[int, float]]] = {}
        for event in events:
            for kind, by_peer in event["diagnostics"].items() if event["event"] == "round" else ():
                for peer, value in by_peer.items() if isinstance(by_peer, dict) else ():
                    if value is not None:
                        observed.setdefault((kind, peer), []).append((event["round"] + 1, value))
        for (kind, peer), values in sorted(observed.items()):
            windows = zip([0, *rounds], rounds, strict=False)
            column = [[value for t, value in values if low < t <= high] for low, high in windows]
            means = [statistics.fmean(some) if some else None for some in column]
            weights.setdefault(kind, {}).setdefault(name, {})[peer] = means
    return weights
