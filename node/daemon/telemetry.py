"""What a daemon shows of itself: one observer of driver and session that feeds journal, voice,
metrics and status.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from math import nan

from google.protobuf.json_format import MessageToDict

from node.config import BudgetSection, RunConfig
from node.daemon.waits import Waits, waiting
from node.figures import BUDGET_REACHED, Metric, document
from node.learning.learner import Learner, LiveEpsilon
from node.observability.metrics import Metrics
from node.observability.voice import Voice
from node.privacy.gate import GradientGate
from node.records.journal import Journal, code_version
from node.rounds.waiting import RoundObserver
from peer import files
from peer.discovery.addresses import AddressBook
from peer.errors import StorageError
from peer.message import Peer
from peer.session.interfaces import SessionObserver
from peer.session.session import Session
from peer.v1 import peer_pb2 as pb

MEASURED = ("test", "end")
"""Events with test metrics."""
PER_ROUND = 16
"""Lines of the journal in a round about what one neighbor did: it could go on and off, or send
rubbish, without end.
"""
WARNINGS = 32
"""Sentences that are kept; the oldest go first."""
NUMBER = re.compile(r"(?<=checkpoint-)\d+|(?<![\w.:/-])\d+(?![\w:/-])")
"""What two warnings may differ in and say the same; parts of names and addresses are no numbers."""
REFUSALS, REFUSALS_S = 200, 10.0
"""Refused calls of one caller in so many seconds that are a warning: an honest one tries again with
growing pauses.
"""
NEWER_ROSTER = (
    "{peer} holds version {version} of the roster, this node version {mine}: copy the newest to "
    "this node."
)
LAG_EVERY = 0.25
"""Seconds between two measurements of the loop's lag."""
LONGEST_VERSION = 40
"""Characters of a neighbor's version that are shown."""
WAITS_EVERY = 1.0
"""Seconds between two looks at whom this node waits for."""
STEPS = (0.5, 0.75, 0.9)
"""Shares of the privacy budget that are an event."""
BUDGET_FIELDS = ("round", "mode", "adjacency", "against")
"""What such an event has in common with one of ε."""


class Telemetry(RoundObserver, SessionObserver):
    """Created before the learner (it counts its releases); `attach` gives it the rest."""

    def __init__(
        self,
        *,
        run: RunConfig,
        name: Peer,
        journal: Journal,
        voice: Voice,
        metrics: Metrics,
        budget: BudgetSection,
        public_test: bool = True,
    ) -> None:
        """`public_test`: its figures may be scraped."""
        self.run, self.name = run, name
        self.journal, self.voice, self.metrics = journal, voice, metrics
        self.limit, self.lifetime_delta = budget.limit, budget.delta
        self._public_test = public_test
        self.state = "starting"
        self.round_seconds: list[float] = []
        self.tested_metrics: Mapping[str, float] = {}
        """The task's metrics as they were measured last."""
        self.diagnostics: Mapping[str, float | Mapping[Peer, float]] = {}
        """The algorithm's figures of the last round, as far as they may be shown."""
        self.distance: float | None = None
        self.warnings: list[str] = []
        self.loop = ""
        self.insecure: list[str] = []
        self.metrics_address: str | None = None
        self.epsilon_now: LiveEpsilon | None = None
        self._learner: Learner | None = None
        self.session: Session | None = None
        self.addresses: AddressBook | None = None
        self._counted = (0, 0)
        self.began = time.monotonic()
        """When this process did, in seconds of the monotonic clock."""
        self._present: dict[Peer, bool] = {}
        self._refusals: dict[Peer, str] = {}
        """The last code with which each neighbor refused something."""
        self._strangers = (self.began, 0)
        """When connections that came to nothing were looked at last, and how many there were so
        far.
        """
        self._refused: dict[str, tuple[float, int]] = {}
        """Whose calls were refused -> since when they are counted, and how many."""
        self._noted: Counter[Peer] = Counter()
        self._noted_in = -1
        self._other_software: set[Peer] = set()
        self._other_code: set[Peer] = set()
        """Neighbors whose software or own code was warned of."""
        self._waits = Waits(run.sync.deadline_s)
        self._step = 0.0
        """The last of STEPS that was reached."""
        self._look_at = 0.0
        """Compositions before which no further one can be."""

    @property
    def learner(self) -> Learner:
        """There before the first round; `snapshot` may be asked for earlier."""
        assert self._learner is not None
        return self._learner

    @learner.setter
    def learner(self, learner: Learner) -> None:
        self._learner = learner

    @property
    def budget_reached(self) -> bool:
        """Is nothing more released, because the data have given away what they may?"""
        return self._learner is not None and self._learner.gate.exhausted

    @property
    def task_figures(self) -> tuple[Metric, ...]:
        """What the task declares, the headline first; () before the learner is there."""
        return self._learner.task.metrics if self._learner else ()

    def attach(
        self, learner: Learner, session: Session, addresses: AddressBook | None = None
    ) -> None:
        self.learner, self.session, self.addresses = learner, session, addresses
        self.metrics.neighbors(learner.neighborhood.neighbors, self.name)
        self.metrics.delta.set(self.run.privacy.delta)
        self.metrics.lifetime_delta.set(self.lifetime_delta)
        self.metrics.run_rounds.set(self.run.train.rounds)
        for metric in learner.task.metrics if self._public_test else ():
            self.metrics.task_metric(metric.name, nan)
        self.log_event(
            "figures",
            metrics=document(learner.task.metrics),
            diagnostics=document(learner.plan.algorithm.DIAGNOSTICS),
        )
        if self.limit is not None:
            self.metrics.epsilon_limit.set(self.limit)

    def log_event(self, event: str, **fields: object) -> None:
        """A line in the journal, and where it is worth one, on standard error. Figures of a private
        test set are said on a terminal only: other outputs are kept, and passed on.
        """
        self._write(event, **fields)
        if event in MEASURED and not self._public_test and not self.voice.on_terminal:
            fields = {**fields, "metrics": {}}
        self.voice.hear(event, fields)

    def _write(self, event: str, **fields: object) -> None:
        """A full disk costs the line, not the run."""
        try:
            self.journal.write(event, **fields)
        except StorageError as error:
            self._is_news(str(error))

    def set_state(self, state: str, reason: str = "") -> None:
        self.state = state
        self.log_event("state", state=state, reason=reason or None)

    def warn(self, text: str, brief: str = "") -> None:
        """A sentence that concerns the user: on their terminal; in logs, journal and status (as
        `brief`, if given). One that differs from an earlier one by a number only takes its
        place."""
        if self._is_news(kept := brief or text):
            self.announce(text, kept)

    def _is_news(self, text: str) -> bool:
        """Keeps a warning for the status; False: one like it was kept before."""
        alike = [
            before for before in self.warnings if NUMBER.sub("#", before) == NUMBER.sub("#", text)
        ]
        if alike:
            self.warnings[self.warnings.index(alike[0])] = text
        else:
            self.warnings = [*self.warnings, text][-WARNINGS:]
        return not alike

    def _withdraw(self, words: str) -> None:
        """What was warned of in these words is over."""
        self.warnings = [text for text in self.warnings if words not in text]

    def announce(self, text: str, brief: str = "") -> None:
        brief = brief or text
        self._write("warning", text=brief)
        self.voice.hear("warning", {"text": text if self.voice.on_terminal else brief})

    def computes_by(self, gate: GradientGate) -> None:
        """How per-example gradients are computed, and what it costs where that is much."""
        if choice := gate.choice:
            slow = choice.slow or None
            self.log_event("backend", backend=choice.backend, reason=choice.reason, slow=slow)

    # from the driver (on the loop's thread, or in the compute thread between rounds)

    def phase(self, t: int, phase: int, kind: str, seconds: float) -> None:
        self.metrics.round.set(t)
        self.metrics.phase(kind, seconds)
        self.log_event("phase", round=t, phase=phase, kind=kind, seconds=seconds)

    def waited(self, peer: Peer, seconds: float) -> None:
        self.metrics.waited(peer, seconds)
        if self._waits.ended(peer) and self.session:
            self.log_event("waited", round=self.session.progress.round, peer=peer, seconds=seconds)

    def lost(self, t: int, phase: int, peer: Peer, why: str) -> None:
        self.metrics.lost(peer)
        self.log_event("lost_edge", round=t, phase=phase, peer=peer, reason=why)

    def dropped(self, t: int, phase: int, peers: frozenset[Peer], after_header: bool) -> None:
        for peer in sorted(peers):
            if after_header:
                self.metrics.partial_mixes.inc()
                self.log_event("partial_mix", round=t, phase=phase, peer=peer)
            else:
                self.log_event(
                    "lost_edge",
                    round=t,
                    phase=phase,
                    peer=peer,
                    reason="It is not mixed in this round.",
                )

    def mixed(self, t: int, weight: Mapping[Peer, float], distance: float) -> None:
        for peer in self.learner.neighborhood.neighbors:
            self.metrics.mixing_weight(peer, weight.get(peer, 0.0))
        self.distance = distance
        self.metrics.consensus_distance.set(distance)

    def outlier(self, t: int, kind: str, peer: Peer, times: float) -> None:
        self.metrics.outlier(peer)
        self._note_of(peer, "outlier", kind=kind, times=times)

    def skipped(self, first: int, last: int) -> None:
        self.log_event(
            "resume", round=last + 1, skipped=[first, last], reason="Most neighbors are that far."
        )
        self.warn(
            f"Rounds {first + 1} to {last + 1} are skipped: most neighbors are that far already."
        )

    def round(self, t: int, seconds: float) -> None:
        self.round_seconds.append(seconds)
        self.metrics.round.set(t)
        self.metrics.rounds.inc()
        self.diagnostics = self._shown(self.learner.diagnostics())
        for name, value in self.diagnostics.items():
            if isinstance(value, Mapping):
                for peer in self.learner.neighborhood.neighbors:
                    self.metrics.diagnostic(name, value.get(peer, nan), peer)
            else:
                self.metrics.diagnostic(name, value)
        self.log_event(
            "round",
            round=t,
            seconds=seconds,
            consensus_distance=self.distance,
            diagnostics=self.diagnostics,
        )

    def _shown(
        self, figures: Mapping[str, float | Mapping[Peer, float]]
    ) -> Mapping[str, float | Mapping[Peer, float]]:
        """Without those per neighbor where they are not to be shown."""
        if self.metrics.diagnostics:
            return figures
        return {name: value for name, value in figures.items() if not isinstance(value, Mapping)}

    # from the compute thread

    def tested(self, t: int, metrics: Mapping[str, float]) -> None:
        if not metrics:
            return
        self.tested_metrics = metrics
        for name, value in metrics.items() if self._public_test else ():
            self.metrics.task_metric(name, value)
        self.log_event("test", round=t, metrics=metrics)

    def spent(self, t: int, stated: bool) -> None:
        """ε after round t (-1: before the first): live figures always, a line in the journal where
        `stated`.
        """
        privacy, gate = self.run.privacy, self.learner.gate
        if privacy.mode == "none" or self.learner.ledger is None:
            return
        counted, self._counted = self._counted, (gate.withheld, gate.faults)
        self.metrics.withheld.inc(gate.withheld - counted[0])
        self.metrics.ledger_errors.inc(gate.faults - counted[1])
        live = self.epsilon_now = self.learner.live_epsilon(self.lifetime_delta)
        for scope, value in (
            ("total", live.total),
            ("link", live.link),
            ("lifetime", live.lifetime),
        ):
            self.metrics.epsilon(
                scope,
                value,
                mode=privacy.mode,
                adjacency=self.run.task.adjacency,
                accountant="RDP",
            )
        if gate.fault:
            self.warn(gate.fault)
        if gate.exhausted:
            self.warn(f"{BUDGET_REACHED.capitalize()} (peerpoise budget says what spent it).")
        stated_epsilon = self.learner.spent(t, live, self.lifetime_delta)
        if stated:
            self.log_event("epsilon", **stated_epsilon)
        self._note_budget(live.lifetime, stated_epsilon)

    def _note_budget(self, bound: float, conditions: Mapping[str, object]) -> None:
        """An event at each of STEPS, of the lifetime ε by PLD, as the limit is kept.

        PLD takes 0.2 s, so it is asked only where a step may be reached: `bound`, by Rényi
        divergence, is not below it, and it grows at most as the number of compositions does.
        """
        later = [step for step in STEPS if step > self._step]
        if not self.limit or not later or bound < later[0] * self.limit:
            return
        compositions = self.learner.compositions
        if compositions < self._look_at:
            return
        lifetime = self.learner.lifetime(self.lifetime_delta)
        share = lifetime / self.limit
        self._step = max((step for step in STEPS if share >= step), default=self._step)
        following = min((step for step in STEPS if step > self._step), default=1.0)
        self._look_at = compositions * following / share if share else 0.0
        if self._step < later[0]:
            return
        self.log_event(
            "budget",
            share=self._step,
            lifetime=lifetime,
            limit=self.limit,
            delta=self.lifetime_delta,
            accountant="PLD",
            **{key: conditions[key] for key in BUDGET_FIELDS},
        )

    def released(self, t: int, recipient: Peer) -> None:
        self.metrics.release(recipient)
        self.log_event("release", round=t, recipient=recipient)

    def withheld(self, t: int, recipient: Peer, why: str) -> None:
        self.log_event("withheld", round=t, recipient=recipient, reason=why)

    def checkpointed(self, t: int, path: str, seconds: float) -> None:
        self.metrics.checkpointed()
        self.log_event("checkpoint", round=t, path=path, seconds=seconds)

    # from the session

    def bytes_moved(self, peer: Peer, direction: str, kind: str, count: int) -> None:
        self.metrics.wire(peer, direction, kind, count)

    def wire_error(self, peer: Peer, code: int) -> None:
        name = _name(code)
        self.metrics.error(peer, name)
        if code and self._refusals.get(peer) != name:  # once, not at every attempt
            self._refusals[peer] = name
            self._note_of(peer, "refused", code=name)

    def rejected(self, peer: Peer, code: int) -> None:
        self.metrics.rejected(peer)
        self._note_of(peer, "rejected", code=_name(code))

    def contradicted(
        self, peer: Peer, told_by: Peer, public: bytes, one: pb.Statement, other: pb.Statement
    ) -> None:
        path = self.journal.path.with_name(f"contradiction-{peer}.json")
        proof = {
            "node": peer,
            "run": self.run.run_id,
            "public_key": base64.b64encode(public).decode(),
            "statements": [
                MessageToDict(statement, preserving_proto_field_name=True)
                for statement in (one, other)
            ],
        }
        try:
            files.atomic_write(path, json.dumps(proof, indent=2).encode())
        except StorageError as error:
            self.warn(str(error))
        self.metrics.contradicted(peer)
        self.log_event(
            "contradiction",
            round=other.round,
            phase=other.phase,
            peer=peer,
            told_by=told_by,
            path=path.name,
        )
        self.warn(
            f"{peer} told this node and {told_by} different things in round {other.round} and is "
            f"cut off; both statements, signed by it, are in {path.name}."
        )

    def refused(self, peer: Peer, code: int) -> None:
        """A member's call was refused, or hangs: it calls too often; peer "": somebody's who is no
        member.
        """
        of = (
            peer
            if self.session and peer in self.session.table.states
            else "member"
            if peer
            else "stranger"
        )
        self.metrics.refused(of, _name(code))
        began, count = self._refused.get(peer, (0.0, 0))
        now = time.monotonic()
        self._refused[peer] = (began, count + 1) if now - began < REFUSALS_S else (now, 1)
        if count + 1 == REFUSALS and now - began < REFUSALS_S:
            who = (
                f"{peer}, a member of the roster,"
                if peer
                else "Somebody with a certificate, but not of the roster,"
            )
            self.warn(
                f"{who} calls this node too often, or is refused: {REFUSALS} calls within "
                f"{now - began:.0f} s, the last one refused as {_name(code)}; if its owner does "
                "not know why, remove it from the roster."
            )

    def adopted(self, removed: frozenset[Peer]) -> None:
        """A newer roster is in force."""
        self._withdraw("of the roster, this node version")
        self._withdraw("is not used (")
        if removed:
            self.warn(
                f"{', '.join(sorted(removed))}: removed from the roster, and cut; the run goes "
                "on without."
            )

    def renewed(self) -> None:
        """A newer certificate is in force."""
        self._withdraw("This node's certificate")
        self._withdraw("The new certificate is not used")

    def connections(self, begun: int, used: int) -> None:
        """TLS handshakes begun so far, and those that became the connection of somebody with a
        certificate.
        """
        self.metrics.connections(begun, used)
        now, strangers = time.monotonic(), begun - used
        if now - self._strangers[0] >= REFUSALS_S:
            if (count := strangers - self._strangers[1]) >= REFUSALS:
                self.warn(
                    "Somebody opens connections to this node and shows no certificate of its "
                    f"federation: {count} within {now - self._strangers[0]:.0f} s; a firewall in "
                    "front of the port would keep them away."
                )
            self._strangers = (now, strangers)

    def software(self, peer: Peer, other: str, same_code: bool) -> None:
        """Once for each neighbor, whatever else it says later."""
        if other and peer not in self._other_software:
            self._other_software.add(peer)
            self.warn(
                f"{peer} runs peerpoise {other[:LONGEST_VERSION]}, {self.name} {code_version()}: "
                "install the same release on both."
            )
        if not same_code and peer not in self._other_code:
            self._other_code.add(peer)
            self.warn(
                f"{peer} and {self.name} run different code of your own (task.name or families): "
                "copy the same files to both, unless it is meant so."
            )

    def newer_roster(self, peer: Peer, version: int) -> None:
        assert self.session is not None
        mine = self.session.table.parameters.roster
        self.warn(NEWER_ROSTER.format(peer=peer, version=version, mine=mine))

    def round_trip(self, peer: Peer, seconds: float) -> None:
        self.metrics.rtt(peer, seconds)

    def presence(self, peer: Peer, live: bool) -> None:
        if self._present.get(peer) is not live:
            self._present[peer] = live
            self.metrics.up(peer, live)
            self._note_of(
                peer,
                "peer",
                state="live" if live else "not live",
                reason=None if live else self.trouble(peer),
            )

    def trouble(self, peer: Peer) -> str | None:
        """What is wrong with a neighbor, if anything."""
        return (
            self.session.table.membership.neighbors[peer].trouble if self.session else ""
        ) or None

    def _note_of(self, peer: Peer, event: str, **fields: object) -> None:
        """A line about what a neighbor did, PER_ROUND of them in a round; the metrics count all."""
        t = self.session.progress.round if self.session else -1
        if t != self._noted_in:
            self._noted, self._noted_in = Counter(), t
        self._noted[peer] += 1
        if self._noted[peer] <= PER_ROUND:
            self.log_event(event, peer=peer, round=t, **fields)

    # for people

    async def measure_lag(self) -> None:
        """Measures how late the loop wakes up, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self.metrics.lag.observe(max(0.0, loop.time() - due))

    async def note_waits(self) -> None:
        """Notes whom this node waits for, if for long, until cancelled."""
        while True:
            await asyncio.sleep(WAITS_EVERY)
            assert self.session is not None
            t = self.session.progress.round
            now = waiting(self.session, self.trouble)
            for each in self._waits.due(now, gathering=t < 0):
                self.log_event(
                    "waiting",
                    round=t,
                    peer=each["peer"],
                    since_s=each["since_s"],
                    until_s=each["until_s"],
                    reason=each["why"],
                )


def _name(code: int) -> str:
    return pb.Code.Name(code) if code in pb.Code.values() else "unknown"
