"""The status document of a daemon, made of what its telemetry holds."""

from __future__ import annotations

import os
import time
from math import isfinite, nan

from node.daemon.telemetry import Telemetry
from node.daemon.waits import waiting
from node.learning.learner import LiveEpsilon
from node.observability.status import (
    Epsilon,
    Neighbor,
    Phase,
    RunEpsilon,
    Status,
    TaskMetric,
)
from node.records.journal import code_version
from peer.session.session import Session

UNREAD = LiveEpsilon(total=nan, link=nan, lifetime=nan)
"""Before the ledger is read."""


def snapshot(watch: Telemetry) -> Status:
    """The status document; called on the loop's thread."""
    privacy, session = watch.run.privacy, watch.session
    live = watch.epsilon_now or UNREAD
    epsilon = Epsilon(
        run=RunEpsilon(total=_finite(live.total), link=_finite(live.link)),
        lifetime=_finite(live.lifetime),
        lifetime_delta=watch.lifetime_delta,
        limit=watch.limit,
        reached=watch.budget_reached,
        mode=privacy.mode,
        batches=privacy.batches,
        adjacency=watch.run.task.adjacency,
        delta=privacy.delta,
        accountant="RDP",
        guaranteed=privacy.mode == "strict" and privacy.insecure_seed is None,
    )
    return Status(
        node=watch.name,
        run=watch.run.run_id,
        algorithm=watch.run.algorithm.name,
        state=watch.state,
        round=max(0, session.progress.round) if session else 0,
        rounds=watch.run.train.rounds,
        phase=_phase(session),
        waiting_for=waiting(session, watch.trouble) if session else [],
        neighbors=_neighbors(watch, session),
        epsilon=None if privacy.mode == "none" else epsilon,
        task_metrics=_task_metrics(watch),
        diagnostics=watch.diagnostics,
        loop=watch.loop,
        insecure=watch.insecure,
        metrics=watch.metrics_address,
        warnings=watch.warnings,
        uptime_s=time.monotonic() - watch.began,
        pid=os.getpid(),
        version=code_version(),
    )


def _task_metrics(watch: Telemetry) -> list[TaskMetric]:
    """In the order of their declaration: the headline is the first."""
    return [
        TaskMetric(
            name=metric.name, unit=metric.unit, value=_finite(watch.tested_metrics[metric.name])
        )
        for metric in watch.task_figures
        if metric.name in watch.tested_metrics
    ]


def _phase(session: Session | None) -> Phase | None:
    if session is None or not session.progress.kind:
        return None
    return Phase(
        kind=session.progress.kind,
        since_s=max(0.0, session.table.now - session.progress.since),
    )


def _neighbors(watch: Telemetry, session: Session | None) -> list[Neighbor]:
    if session is None:
        return []
    contacts, found_by = (
        session.table.states,
        watch.addresses.source if watch.addresses else lambda *_: "",
    )
    return [
        Neighbor(
            name=peer,
            state=it.presence.value,
            address=contacts[peer].address or None,
            found_by=found_by(contacts[peer].id, contacts[peer].address) or None,
            round=it.round if it.round >= 0 else None,
            rtt_ms=None if it.rtt is None else 1000 * it.rtt,
            last_error=it.trouble or None,
        )
        for peer, it in session.table.membership.neighbors.items()
    ]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
